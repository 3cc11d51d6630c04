"""The check that vLLM runs on a MoE-LLaVA checkpoint's settings before it starts an engine."""

from vllm.config import VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from prismoe.model_plugins.engine_checks import check_engine
from prismoe.model_plugins.moe_llava.config import (
    MOST_REQUEST_EXPERTS,
    check_servable,
    routing_in_force,
)
from prismoe.model_plugins.moe_llava.tower import tokens_per_image
from prismoe.model_plugins.routed_model import operator_routing


class MoELLaVAStartCheck(VerifyAndUpdateConfig):
    """Refuses settings under which the checkpoint would route wrongly."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Raise ValueError with a sentence, in the process that the user started."""
        config = vllm_config.model_config.hf_config
        check_servable(config)
        in_force = routing_in_force(config, operator_routing(vllm_config))
        # What processes requests sees the checkpoint's config, but not the operator's settings.
        setattr(config, MOST_REQUEST_EXPERTS, in_force.most_request_experts)
        image_size = tokens_per_image(config, vllm_config.model_config.model)
        check_engine(vllm_config, in_force.needs_whole_images, image_size)
