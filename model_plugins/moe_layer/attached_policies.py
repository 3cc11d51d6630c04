"""Routing policies in a model that vLLM has built, by its own gates: in its routers' place or beside."""

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

from prismoe.kernels.routing import top_experts
from prismoe.model_plugins.moe_layer.attach import gate_of, mark_steps_of, why_unseen
from prismoe.model_plugins.moe_layer.model_routing import ModelRouting, kernel_name, runners_of
from prismoe.model_plugins.moe_layer.router import Observer, layer_shape
from prismoe.model_plugins.moe_layer.skipping import skip_unused_slots
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.routing.gate import Gate
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy
from prismoe.model_plugins.routing.registry import POLICIES, LayerRouting, Option, choose_routing
from prismoe.model_plugins.vllm_seams.experts_sink import routes_by_itself
from prismoe.model_plugins.vllm_seams.native_router import replace_routing

PARAMETERS = "parameters"
"""The setting that names a safetensors file with what a policy was trained to."""
CHECKED_TOKENS = 64


class PolicyLayer:
    """Chooses the experts of one MoE layer, in place of its router or beside it."""

    observer: Observer | None = None

    def __init__(
        self,
        routing: LayerRouting,
        gate: Gate,
        step: RoutingStep,
        place: int,
        parameters: Mapping[str, Tensor],
    ) -> None:
        self.policy, self.gate, self.parameters = routing.policy, gate, dict(parameters)
        self._num_experts = routing.num_experts
        self._slots = routing.policy.slots(routing.num_experts)
        self._is_renormalised = bool(getattr(routing.policy, "norm_topk_prob", True))
        self._step, self._place = step, place
        self._route: Callable[[RouterInputs], Routing] = _route_by(routing.policy, routing.num_experts)

    def decide(self, hidden_TD: Tensor, logits_TE: Tensor) -> tuple[Tensor, Tensor]:
        """Route the running step, and write down where it goes.

        Returns `weights_TA` (float32) and `experts_TA` (int32).
        """
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
        experts_TA, weights_TA, count_T, tail_T, confidence = self._route(inputs)
        experts_TA = experts_TA.int().contiguous()
        weights_TA = self.gate.scaled(weights_TA, experts_TA, logits_TE, self._is_renormalised).contiguous()
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


class GatePolicies(ModelRouting):
    """The operator's policies for the MoE layers of a model that vLLM has loaded; nobody asks them yet.

    The tokens are those of the step `beside` its own. Raises ValueError with a sentence where the model can't
    be routed so.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        modalities: Sequence[str],
        operator: Mapping[str, Any],
        option: Option = "--routing",
        beside: RoutingStep | None = None,
    ) -> None:
        architecture = vllm_config.model_config.architecture
        runners = runners_of(model)
        if (unseen := why_unseen(architecture, runners, modalities)) is not None:
            raise ValueError(f"The routing policy can't be used. {unseen}")
        settings = {name: value for name, value in operator.items() if name != PARAMETERS}
        gates = {runner.layer_id: gate_of(runner) for runner in runners}
        self._top_k = runners[0].routed_experts.top_k
        in_force = choose_routing(
            settings,
            None,
            self._top_k,
            {runner.layer_id: runner.moe_config.num_logical_experts for runner in runners},
            gates[runners[0].layer_id].renormalises,
            option,
        )
        for runner in runners:
            check_layer(runner, gates[runner.layer_id], in_force.layers[runner.layer_id])
        shapes = {
            layer: layer_shape(routing.policy, routing.num_experts, gates[layer])
            for layer, routing in in_force.layers.items()
        }
        max_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        super().__init__(architecture, modalities, shapes, max_tokens, beside)
        device = next(model.parameters()).device
        self.to(device)
        if current_platform.is_cuda():
            self.step.write_by_kernel()
        self.in_force, self.gates = in_force, gates
        trained = _trained(operator.get(PARAMETERS))
        self.policies: dict[int, PolicyLayer] = {}
        for place, runner in enumerate(runners):
            layer = runner.layer_id
            routing = in_force.layers[layer]
            parameters = _parameters(trained, layer, routing, runner.moe_config.hidden_dim, device)
            self.policies[layer] = PolicyLayer(routing, gates[layer], self.step, place, parameters)

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


class AttachedPolicies(GatePolicies):
    """The same in force: they choose in place of the model's routers."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        modalities: Sequence[str],
        operator: Mapping[str, Any],
    ) -> None:
        super().__init__(vllm_config, model, modalities, operator)
        for runner in runners_of(model):
            chooser = self.routers[runner.layer_id] = self.policies[runner.layer_id]
            assert isinstance(runner.router, BaseRouter)  # or it could not be seen
            replace_routing(runner.router, chooser.decide)
            if not chooser.policy.uses_all_slots and current_platform.is_cpu():
                skip_unused_slots(runner)
        mark_steps_of(model, self.step)


def check_layer(runner: MoERunner, gate: Gate, routing: LayerRouting) -> None:
    """Raise ValueError with a sentence where a layer's gate or kernel can't give what its policy needs."""
    policy, layer = routing.policy, f"layer {runner.layer_id}"
    if not policy.takes_any_gate:
        names = ", ".join(name for name, kind in POLICIES.items() if kind.takes_any_gate)
        raise ValueError(
            f"The policy {policy.policy} has a router of its own, which this model was not trained with: "
            f"give one of {names}."
        )
    if policy.gate_rows(routing.num_experts) != routing.num_experts:
        raise ValueError(f"The model's gate scores all of its experts: {policy.policy} can't share some.")
    if policy.needs_whole_images:
        raise ValueError(
            f"The policy {policy.policy} compares the tokens of a whole image, and vLLM may cut this model's "
            "images between steps: give it a threshold."
        )
    if gate.scoring is None:
        raise ValueError(f"The gate of {layer} is a function of the model's own: it routes by native alone.")
    if routes_by_itself(runner):
        raise ValueError(
            f"The kernel of {layer} ({kernel_name(runner)}) routes by itself: "
            "choose another with --moe-backend, or leave the policy out."
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


def _trained(file: object) -> Mapping[str, Tensor]:
    if file is None:
        return {}
    if not isinstance(file, str) or not Path(file).is_file():
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
