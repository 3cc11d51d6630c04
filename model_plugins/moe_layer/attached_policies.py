"""Routing policies in a model that vLLM has built: they choose in place of its routers, by its own gates.

Its routers choose beside them, so that an operator can return to `native` while requests run. A layer under a
policy pays for that: its router's top-k and a few operations on `[T, A]`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.platforms import current_platform

from prismoe.kernels.expert_load import LayerShape
from prismoe.kernels.routing import top_experts
from prismoe.model_plugins.moe_layer.attach import gate_of, mark_steps_of, why_unseen
from prismoe.model_plugins.moe_layer.either import either
from prismoe.model_plugins.moe_layer.model_routing import ModelRouting, kernel_name, runners_of
from prismoe.model_plugins.moe_layer.router import Observer, layer_shape
from prismoe.model_plugins.moe_layer.skipping import skip_unused_slots
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.routing import RoutedBy
from prismoe.model_plugins.routing.any_gate import PARAMETERS, OperatorPolicies
from prismoe.model_plugins.routing.gate import Gate
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy
from prismoe.model_plugins.routing.registry import LayerRouting, choose_routing
from prismoe.model_plugins.vllm_seams.experts_sink import routes_by_itself
from prismoe.model_plugins.vllm_seams.native_router import replace_routing

CHECKED_TOKENS = 64


class PolicyLayer:
    """Chooses the experts of one MoE layer in place of its router, or leaves them as its router chose.

    It has `slots` slots, the more of the policy's and the router's. `is_native` is a flag on the device.
    """

    observer: Observer | None = None

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
        self.policy, self.gate, self.parameters = routing.policy, gate, dict(parameters)
        self._num_experts = routing.num_experts
        self._slots, self._is_native = slots, is_native
        self._is_renormalised = bool(getattr(routing.policy, "norm_topk_prob", True))
        self._step, self._place = step, place
        self._route: Callable[[RouterInputs], Routing] = _route_by(routing.policy, routing.num_experts)

    def decide(
        self, hidden_TD: Tensor, logits_TE: Tensor, native_weights_TK: Tensor, native_experts_TK: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Route the running step, which the layer's router has routed, and write down where it goes.

        Returns `weights_TA` (float32) and `experts_TA` (int32).
        """
        tokens = self._step.tokens(hidden_TD.shape[0])
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
        policy = self._route(inputs)
        scaled_TA = self.gate.scaled(policy.weights_TA, policy.experts_TA, logits_TE, self._is_renormalised)
        confidence = None if self.policy.gives_gate_confidence else self.gate.confidence(logits_TE)
        native = Routing.of_equal_counts(native_experts_TK, native_weights_TK, confidence)
        experts_TA, weights_TA, count_T, tail_T, confidence = either(
            self._is_native, native, policy._replace(weights_TA=scaled_TA)
        )
        self._step.write(self._place, experts_TA, weights_TA, count_T, tail_T, confidence)
        if self.observer is not None:  # it sees as many slots in each step
            unused = self._slots - experts_TA.shape[1]
            self.observer(hidden_TD, logits_TE, pad(experts_TA, (0, unused)), pad(weights_TA, (0, unused)))
        return weights_TA, experts_TA


def _route_by(policy: RoutingPolicy, num_experts: int) -> Callable[[RouterInputs], Routing]:
    """How this platform routes by `policy`."""
    if current_platform.is_cuda():
        from prismoe.model_plugins.moe_layer.gpu_router import fused_routing, fused_routing_works

        if fused_routing_works(policy, num_experts):
            return partial(fused_routing, policy)
    return policy.route


class AttachedPolicies(ModelRouting):
    """The MoE layers of a model that vLLM has loaded, under the operator's policies.

    Raises ValueError with a sentence where the model can't be routed so.
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
        architecture = vllm_config.model_config.architecture
        runners = runners_of(model)
        if (unseen := why_unseen(architecture, runners, modalities)) is not None:
            raise ValueError(f"The routing policy can't be used. {unseen}")
        gates = {runner.layer_id: gate_of(runner) for runner in runners}
        self._top_k = runners[0].routed_experts.top_k
        in_force = choose_routing(
            operator.settings,
            None,
            self._top_k,
            {runner.layer_id: runner.moe_config.num_logical_experts for runner in runners},
            gates[runners[0].layer_id].renormalises,
        )
        for runner in runners:
            check_layer(runner, gates[runner.layer_id], in_force.layers[runner.layer_id])
        shapes = {
            runner.layer_id: shape_of(
                in_force.layers[runner.layer_id], gates[runner.layer_id], runner.routed_experts.top_k
            )
            for runner in runners
        }
        super().__init__(
            architecture, modalities, shapes, vllm_config.scheduler_config.max_num_batched_tokens
        )
        self.register_buffer("is_native", torch.zeros((), dtype=torch.bool), persistent=False)
        device = next(model.parameters()).device
        self.to(device)
        if current_platform.is_cuda():
            self.step.write_by_kernel()
        self.in_force, self.gates = in_force, gates
        trained = _trained(operator.trained)
        for place, runner in enumerate(runners):
            layer = runner.layer_id
            routing, shape = in_force.layers[layer], shapes[layer]
            parameters = _parameters(trained, layer, routing, runner.moe_config.hidden_dim, device)
            chooser = PolicyLayer(
                routing, gates[layer], self.step, place, parameters, shape.slots, self.is_native
            )
            self.routers[layer] = chooser
            assert isinstance(runner.router, BaseRouter)  # or it could not be seen
            replace_routing(runner.router, chooser.decide)
            if not shape.uses_all_slots and current_platform.is_cpu():
                skip_unused_slots(runner)
        mark_steps_of(model, self.step)

    def route_by(self, choice: RoutedBy) -> bool:
        changes = choice != self.routed_by
        self.routed_by = choice
        self.is_native.fill_(choice == "native")
        return changes

    def source(self) -> str:
        return self.in_force.source

    def describe_layer(self, layer: int) -> Mapping[str, Any]:
        routing = self.in_force.layers[layer]
        return {
            "top_k": self._top_k,
            "gate": str(self.gates[layer]),
            "policy": routing.policy.model_dump(),
            "sources": dict(routing.sources),
        }


def shape_of(routing: LayerRouting, gate: Gate, top_k: int) -> LayerShape:
    """What counting has to know of a layer whose tokens use the policy's experts or its router's `top_k`."""
    shape = layer_shape(routing.policy, routing.num_experts, gate)
    return shape._replace(
        slots=max(shape.slots, top_k),
        uses_all_slots=shape.uses_all_slots and shape.slots == top_k,
    )


def check_layer(runner: MoERunner, gate: Gate, routing: LayerRouting) -> None:
    """Raise ValueError with a sentence where a layer's gate or kernel can't give what its policy needs."""
    policy, layer = routing.policy, f"layer {runner.layer_id}"
    if gate.scoring is None:
        raise ValueError(f"The gate of {layer} is a function of the model's own: it routes by native alone.")
    if routes_by_itself(runner):
        raise ValueError(
            f"The kernel of {layer} ({kernel_name(runner)}) routes by itself: "
            "choose another with --moe-backend, or leave the policy out."
        )
    if current_platform.is_cuda() and not policy.uses_all_slots and "Cutlass" in kernel_name(runner):
        raise ValueError(
            f"The policy {policy.policy} leaves slots unused, which the kernel of {layer} "
            f"({kernel_name(runner)}) can't do: use --moe-backend triton."
        )
    if runner.routed_experts.apply_router_weight_on_input:
        raise ValueError(f"The experts of {layer} take their weights with their inputs: use native.")
    most = gate.most_experts(routing.num_experts)
    if policy.policy != "modality_groups" and policy.slots(routing.num_experts) > most:
        raise ValueError(
            f"The gate of {layer} chooses among {most} of its experts, and the policy {policy.policy} asks "
            f"for up to {policy.slots(routing.num_experts)}: lower its numbers of experts."
        )
    if not follows(runner, gate):
        raise ValueError(f"prismoe does not see how the gate of {layer} weighs: it routes by native alone.")


@torch.inference_mode()
def follows(runner: MoERunner, gate: Gate) -> bool:
    """Whether the gate, as prismoe reads it, gives vLLM's own experts and weights for some made-up tokens."""
    experts: Any = runner.routed_experts
    router: Any = runner.router
    device = experts.w2_weight.device
    generator = torch.Generator().manual_seed(0)
    num_experts, top_k = runner.moe_config.num_logical_experts, router.top_k
    logits_TE = 2 * torch.randn(CHECKED_TOKENS, num_experts, generator=generator, dtype=torch.float32)
    logits_TE = logits_TE.to(device)
    hidden_TD = torch.zeros(CHECKED_TOKENS, runner.moe_config.hidden_dim, device=device)
    confidence = gate.confidence(logits_TE)
    experts_TK, weights_TK = top_experts(confidence.logits_TE, top_k, gate.renormalises, confidence.scores_TE)
    ours_TK = gate.scaled(weights_TK, experts_TK, logits_TE, gate.renormalises)
    theirs_TK, chosen_TK = router._compute_routing(hidden_TD, logits_TE, None)
    if chosen_TK.shape != experts_TK.shape:
        return False
    mine_TE, vllms_TE = (
        torch.zeros_like(logits_TE).scatter_(1, picked_TK.long(), shares_TK.float())
        for picked_TK, shares_TK in ((experts_TK, ours_TK), (chosen_TK, theirs_TK))
    )
    return torch.allclose(mine_TE, vllms_TE, rtol=1e-4, atol=1e-6)


def _trained(file: str | None) -> Mapping[str, Tensor]:
    if file is None:
        return {}
    if not Path(file).is_file():
        raise ValueError(f"The routing setting parameters names {file!r}: give a safetensors file.")
    return load_file(file)


def _parameters(
    trained: Mapping[str, Tensor], layer: int, routing: LayerRouting, hidden_size: int, device: torch.device
) -> Mapping[str, Tensor]:
    """What the policy of a layer was trained to, from the operator's file."""
    found = {}
    for name, shape in routing.policy.parameters(hidden_size, routing.num_experts).items():
        key = f"layers.{layer}.{name}"
        if key not in trained or trained[key].shape != shape:
            raise ValueError(
                f"The policy {routing.policy.policy} has parameters: name a safetensors file in the routing "
                f"setting {PARAMETERS} that has {key} of shape {shape}."
            )
        found[name] = trained[key].to(device, torch.float32)
    return found
