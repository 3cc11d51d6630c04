"""Identifies the checkpoint of a model that vLLM has loaded."""

from collections.abc import Sequence

from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from prismoe.model_plugins.files.hub import checkpoint_folder
from prismoe.model_plugins.files.weight_files import weights_digest
from prismoe.model_plugins.routing.calibrated import ModelIdentity


def identity_of(vllm_config: VllmConfig, runners: Sequence[MoERunner]) -> ModelIdentity:
    """The identity of a model with these MoE layers. Raises ValueError where its files can't be read."""
    model, download_dir = vllm_config.model_config, vllm_config.load_config.download_dir
    return ModelIdentity(
        architecture=model.architecture,
        layers=len(runners),
        experts=runners[0].moe_config.num_logical_experts,
        top_k=runners[0].routed_experts.top_k,
        weights=weights_digest(checkpoint_folder(model.model, model.revision, download_dir)),
    )
