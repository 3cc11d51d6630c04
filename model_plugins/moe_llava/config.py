"""The config.json of a MoE-LLaVA checkpoint."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from transformers import PhiConfig, PretrainedConfig

from prismoe.model_plugins.routing import ROUTING_KEY
from prismoe.model_plugins.routing.registry import RoutingInForce, choose_routing


class MoELLaVAPhiConfig(PhiConfig):
    """A Phi decoder's config with MoE-LLaVA's keys (`moe`, `mm_*`, …) beside Phi's own."""

    model_type = "moe_llava_phi"


class MoESettings(BaseModel):
    """The keys of a checkpoint's `moe` object that matter when serving; the others are its training's."""

    moe_enable: bool = True
    moe_layers_idx: list[int]
    num_experts: list[int]
    top_k_experts: int
    use_residual: bool = False

    def experts_by_layer(self) -> dict[int, int]:
        """The number of experts of each MoE layer, by the decoder's layer index.

        Raises ValueError for what can't be served.
        """
        if not self.moe_enable:
            return {}
        if self.use_residual:
            raise ValueError(
                "The checkpoint uses residual MoE (moe.use_residual), which prismoe does not serve."
            )
        counts = (
            self.num_experts if len(self.num_experts) > 1 else self.num_experts * len(self.moe_layers_idx)
        )
        if len(counts) != len(self.moe_layers_idx):
            raise ValueError(
                f"The checkpoint's config names {len(self.moe_layers_idx)} MoE layers but gives "
                f"{len(counts)} numbers of experts: correct moe.num_experts in config.json."
            )
        return dict(zip(self.moe_layers_idx, counts, strict=True))


def routing_in_force(config: PretrainedConfig, operator: Mapping[str, Any] | None) -> RoutingInForce:
    """How a checkpoint with this config routes under the operator's setting (None: the checkpoint's own).

    Raises ValueError with a sentence when the settings make no sense for one of its layers.
    """
    moe = MoESettings.model_validate(config.moe)
    in_force = choose_routing(operator, getattr(config, ROUTING_KEY, None), moe.top_k_experts)
    for num_experts in moe.experts_by_layer().values():
        in_force.policy.slots(num_experts)
    return in_force
