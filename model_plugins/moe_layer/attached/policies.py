"""Routing policies in a model that vLLM has built: they replace its routers' choices, and use its gates.

Its routers still choose, too, so that an operator can return to `native` while requests run. This costs a
layer its router's top-k and a few operations on `[T, A]`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.platforms import current_platform

from prismoe.kernels.expert_load import LayerShape
from prismoe.model_plugins.moe_layer.attached.attach import mark_steps_of
from prismoe.model_plugins.moe_layer.attached.checked_policies import CheckedPolicies
from prismoe.model_plugins.moe_layer.attached.either import either
from prismoe.model_plugins.moe_layer.experts.skipping import skip_unused_slots
from prismoe.model_plugins.moe_layer.model_routing import ModelRouting
from prismoe.model_plugins.moe_layer.router import Observer, layer_shape
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.routing import RoutedBy
from prismoe.model_plugins.routing.any_gate import OperatorPolicies
from prismoe.model_plugins.routing.gate import Gate
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy
from prismoe.model_plugins.routing.registry import LayerRouting
from prismoe.model_plugins.routing.thresholds import ThresholdsByLayer
from prismoe.model_plugins.vllm_seams.engine.native_router import replace_routing


class LayerPolicy:
    """Routes one MoE layer's tokens by a policy, under the layer's own gate."""

    def __init__(
        self,
        routing: LayerRouting,
        gate: Gate,
        step: RoutingStep,
        place: int,
        parameters: Mapping[str, Tensor],
    ) -> None:
        self.gate, self.parameters = gate, dict(parameters)
        self._step, self._place = step, place
        self.use(routing)

    def use(self, routing: LayerRouting) -> None:
        """Route by this policy from the next step on."""
        self.policy, self._num_experts = routing.policy, routing.num_experts
        self._is_renormalised = bool(getattr(routing.policy, "norm_topk_prob", True))
        self._route: Callable[[RouterInputs], Routing] = _route_by(routing.policy, routing.num_experts)

    def route(self, hidden_TD: Tensor, logits_TE: Tensor) -> Routing:
        """The policy's decision for the running step; its weights are the factors of the experts' outputs."""
        tokens = self._step.tokens.seen(hidden_TD.shape[0])
        inputs = RouterInputs(
            hidden_TD,
            logits_TE.float(),
            tokens.segment_T,
            tokens.asked_T2,
            self.parameters,
            self._num_experts,
            tokens.is_text,
            self.gate,
        )
        routing = self._route(inputs)
        scaled_TA = self.gate.scaled(routing.weights_TA, routing.experts_TA, logits_TE, self._is_renormalised)
        return routing._replace(weights_TA=scaled_TA)


class PolicyLayer(LayerPolicy):
    """Chooses the experts of one MoE layer in place of its router, or keeps the router's choice.

    It has `slots` slots, the larger number of the policy's and the router's. `is_native` is a flag on the
    device.
    """

    observer: Observer | None = None
    """The observer sees each step, and may change the weights in place."""

    def __init__(
        self,
        routing: LayerRouting,
        gate: Gate,
        step: RoutingStep,
        place: int,
        parameters: Mapping[str, Tensor],
        slots: int,
        is_native: Tensor,
    ) -> None:
        super().__init__(routing, gate, step, place, parameters)
        self._slots, self._is_native = slots, is_native

    def decide(
        self, hidden_TD: Tensor, logits_TE: Tensor, native_weights_TK: Tensor, native_experts_TK: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Route the running step, which the layer's router has already routed, and record the decision.

        Returns `weights_TA` (float32) and `experts_TA` (int32).
        """
        policy = self.route(hidden_TD, logits_TE)
        confidence = None if self.policy.gives_gate_confidence else self.gate.confidence(logits_TE)
        native = Routing.of_equal_counts(native_experts_TK, native_weights_TK, confidence)
        experts_TA, weights_TA, count_T, tail_T, confidence = either(self._is_native, native, policy)
        self._step.write(self._place, experts_TA, weights_TA, count_T, tail_T, confidence)
        if self.observer is not None:  # it sees the same number of slots in each step
            slots = experts_TA.shape[1]
            unused = self._slots - slots
            all_weights_TA = pad(weights_TA, (0, unused))
            self.observer(hidden_TD, logits_TE, pad(experts_TA, (0, unused)), all_weights_TA)
            weights_TA = all_weights_TA[:, :slots].contiguous()
        return weights_TA, experts_TA


def _route_by(policy: RoutingPolicy, num_experts: int) -> Callable[[RouterInputs], Routing]:
    """The function that routes by `policy` on this platform."""
    if current_platform.is_cuda():
        from prismoe.model_plugins.moe_layer.gpu_router import fused_routing, fused_routing_works

        if fused_routing_works(policy, num_experts):
            return partial(fused_routing, policy)
    return policy.route


class AttachedPolicies(ModelRouting):
    """The MoE layers of a model that vLLM has loaded, under the operator's policies.

    Raises ValueError where the policies can't route the model.
    """

    switchable = True
    is_native: Tensor

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        modalities: Sequence[str],
        operator: OperatorPolicies,
    ) -> None:
        checked = CheckedPolicies.of(vllm_config, model, modalities, operator)
        shapes = {
            runner.layer_id: shape_of(
                checked.in_force.layers[runner.layer_id],
                checked.gates[runner.layer_id],
                runner.routed_experts.top_k,
            )
            for runner in checked.runners
        }
        architecture, scheduler = vllm_config.model_config.architecture, vllm_config.scheduler_config
        super().__init__(architecture, modalities, shapes, scheduler.max_num_batched_tokens)
        self.register_buffer("is_native", torch.zeros((), dtype=torch.bool), persistent=False)
        self.to(next(model.parameters()).device)
        if current_platform.is_cuda():
            self.step.write_by_kernel()
        self._checked = checked
        self._choosers: dict[int, PolicyLayer] = {}
        for place, runner in enumerate(checked.runners):
            layer, shape = runner.layer_id, shapes[runner.layer_id]
            chooser = PolicyLayer(
                checked.in_force.layers[layer],
                checked.gates[layer],
                self.step,
                place,
                checked.parameters[layer],
                shape.slots,
                self.is_native,
            )
            self.routers[layer] = self._choosers[layer] = chooser
            assert isinstance(runner.router, BaseRouter)  # `why_unseen` refuses others
            replace_routing(runner.router, chooser.decide)
            if not shape.uses_all_slots and current_platform.is_cpu():
                skip_unused_slots(runner)
        mark_steps_of(architecture, model, self.step)

    def route_by(self, choice: RoutedBy) -> bool:
        changes = choice != self.routed_by
        self.routed_by = choice
        self.is_native.fill_(choice == "native")
        return changes

    def change_thresholds(self, by_layer: ThresholdsByLayer) -> bool:
        return self._checked.change_thresholds(by_layer)

    def reroute(self, routing: Mapping[str, Any] | None) -> None:
        self.is_native.fill_(routing is None)
        if routing is not None:
            self._checked = self._checked.under(OperatorPolicies.of(routing))
            for layer, chooser in self._choosers.items():
                chooser.use(self._checked.in_force.layers[layer])

    def source(self) -> str:
        return self._checked.in_force.source

    def describe_layer(self, layer: int) -> Mapping[str, Any]:
        return self._checked.describe_layer(layer)


def shape_of(routing: LayerRouting, gate: Gate, top_k: int) -> LayerShape:
    """The shape of a layer whose tokens use the policy's experts or its router's `top_k`."""
    shape = layer_shape(routing.policy, routing.num_experts, gate)
    return shape._replace(
        slots=max(shape.slots, top_k),
        uses_all_slots=shape.uses_all_slots and shape.slots == top_k,
    )
