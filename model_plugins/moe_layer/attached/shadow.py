"""Shadow policies beside `native`: prismoe counts what they would use, and they route nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.platforms import current_platform

from prismoe.model_plugins.moe_layer.attached.checked_policies import CheckedPolicies
from prismoe.model_plugins.moe_layer.attached.policies import LayerPolicy
from prismoe.model_plugins.moe_layer.model_routing import ModelRouting
from prismoe.model_plugins.moe_layer.router import layer_shape
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.routing.any_gate import OperatorPolicies


class ShadowLayer(LayerPolicy):
    """Records what a policy would decide for one MoE layer."""

    def follow(self, hidden_TD: Tensor, logits_TE: Tensor) -> None:
        """Route the layer's tokens into the shadow's own step."""
        experts_TA, weights_TA, count_T, tail_T, confidence = self.route(hidden_TD, logits_TE)
        experts_TA, weights_TA = experts_TA.int().contiguous(), weights_TA.contiguous()
        self._step.write(self._place, experts_TA, weights_TA, count_T, tail_T, confidence)


class ShadowPolicies(ModelRouting):
    """The MoE layers of a model that vLLM has loaded, as the operator's policies would route them.

    The tokens are those of `beside`, the running step. Raises ValueError where the policies could not be in
    force.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        modalities: Sequence[str],
        operator: OperatorPolicies,
        beside: RoutingStep,
    ) -> None:
        checked = CheckedPolicies.of(vllm_config, model, modalities, operator)
        shapes = {
            layer: layer_shape(routing.policy, routing.num_experts, checked.gates[layer])
            for layer, routing in checked.in_force.layers.items()
        }
        architecture, scheduler = vllm_config.model_config.architecture, vllm_config.scheduler_config
        super().__init__(architecture, modalities, shapes, scheduler.max_num_batched_tokens, beside)
        self.to(next(model.parameters()).device)
        if current_platform.is_cuda():
            self.step.write_by_kernel()
        self._checked = checked
        self.followers = {
            layer: ShadowLayer(routing, checked.gates[layer], self.step, place, checked.parameters[layer])
            for place, (layer, routing) in enumerate(checked.in_force.layers.items())
        }

    def source(self) -> str:
        return self._checked.in_force.source

    def describe_layer(self, layer: int) -> Mapping[str, Any]:
        return self._checked.describe_layer(layer)
