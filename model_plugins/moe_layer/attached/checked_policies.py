"""The operator's policies for a model that vLLM has built, after the check that they can route it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from prismoe.kernels.routing import top_experts
from prismoe.model_plugins.moe_layer.attached.attach import gate_of, why_native_alone, why_unseen
from prismoe.model_plugins.moe_layer.attached.identity import identity_of
from prismoe.model_plugins.moe_layer.experts.unused_slots import check_unused_slots
from prismoe.model_plugins.moe_layer.model_routing import kernel_name, runners_of
from prismoe.model_plugins.routing.any_gate import PARAMETERS, OperatorPolicies
from prismoe.model_plugins.routing.gate import Gate
from prismoe.model_plugins.routing.registry import LayerRouting, RoutingInForce, choose_routing
from prismoe.model_plugins.routing.thresholds import (
    THRESHOLDS_ROUTE,
    ThresholdsByLayer,
    threshold_tensors,
    thresholds_of,
)
from prismoe.model_plugins.vllm_seams.engine.experts_sink import routes_by_itself

CHECKED_TOKENS = 64


class CheckedPolicies(NamedTuple):
    """The routing of each MoE layer, with its gate and the policy's parameters, by the layer's index.

    The parameters include the thresholds, so that these can change while requests run.
    """

    runners: Sequence[MoERunner]
    in_force: RoutingInForce
    gates: Mapping[int, Gate]
    parameters: Mapping[int, Mapping[str, Tensor]]
    changed_thresholds: dict[int, dict[str, float]]

    @classmethod
    def of(
        cls, vllm_config: VllmConfig, model: nn.Module, modalities: Sequence[str], operator: OperatorPolicies
    ) -> Self:
        """Check the policies for a model whose routers nothing watches yet.

        Raises ValueError where they can't route it.
        """
        runners, architecture = runners_of(model), vllm_config.model_config.architecture
        if refusal := why_native_alone(architecture):
            raise ValueError(refusal)
        unseen = why_unseen(architecture, runners, modalities)
        if unseen is not None:
            raise ValueError(f"The routing policy can't be used. {unseen}")
        gates = {runner.layer_id: gate_of(runner) for runner in runners}
        if operator.calibrated_for is not None:
            operator.calibrated_for.check(identity_of(vllm_config, runners))
        in_force = _in_force(runners, gates, operator)
        for runner in runners:
            check_layer(runner, gates[runner.layer_id], in_force.layers[runner.layer_id])
        trained, device = _trained(operator.trained), next(model.parameters()).device
        parameters = {
            runner.layer_id: _parameters(
                trained,
                runner.layer_id,
                in_force.layers[runner.layer_id],
                runner.moe_config.hidden_dim,
                device,
            )
            for runner in runners
        }
        return cls(runners, in_force, gates, parameters, {})

    def under(self, operator: OperatorPolicies) -> Self:
        """The same with other settings of the policies, which need no more of gates and kernels."""
        in_force = _in_force(self.runners, self.gates, operator)
        for layer, routing in in_force.layers.items():
            for name, value in thresholds_of(routing.policy).items():
                self.parameters[layer][name].fill_(value)
        return self._replace(in_force=in_force, changed_thresholds={})

    def describe_layer(self, layer: int) -> Mapping[str, Any]:
        """Describe a layer, as `ModelRouting.describe_layer` does."""
        routing = self.in_force.layers[layer]
        changed = self.changed_thresholds.get(layer, {})
        return {
            "top_k": self.runners[0].routed_experts.top_k,
            "gate": str(self.gates[layer]),
            "policy": routing.policy.model_dump() | changed,
            "sources": dict(routing.sources) | dict.fromkeys(changed, THRESHOLDS_ROUTE),
        }

    def change_thresholds(self, by_layer: ThresholdsByLayer) -> bool:
        """Route by these thresholds from the next step on. Returns whether any of them changes."""
        changes = False
        for layer, thresholds in by_layer.items():
            policy = self.in_force.layers[layer].policy
            changed = self.changed_thresholds.setdefault(layer, {})
            for name, value in thresholds.items():
                changes |= value != changed.get(name, getattr(policy, name))
                changed[name] = value
                self.parameters[layer][name].fill_(value)
        return changes


def _in_force(
    runners: Sequence[MoERunner], gates: Mapping[int, Gate], operator: OperatorPolicies
) -> RoutingInForce:
    return choose_routing(
        operator.settings,
        None,
        runners[0].routed_experts.top_k,
        {runner.layer_id: runner.moe_config.num_logical_experts for runner in runners},
        gates[runners[0].layer_id].renormalises,
        operator.option,
    )


def check_layer(runner: MoERunner, gate: Gate, routing: LayerRouting) -> None:
    """Raise ValueError where a layer's gate or kernel doesn't support its policy."""
    policy, layer = routing.policy, f"layer {runner.layer_id}"
    if gate.scoring is None:
        raise ValueError(f"The gate of {layer} is the model's own function: it can only route by native.")
    if routes_by_itself(runner):
        raise ValueError(
            f"The kernel of {layer} ({kernel_name(runner)}) routes by itself: "
            "choose another with --moe-backend, or leave the policy out."
        )
    # If the policy's number of experts differs from the model's, some slots are unused, too.
    uses_all = policy.uses_all_slots and policy.slots(routing.num_experts) == runner.routed_experts.top_k
    if not uses_all:
        check_unused_slots(runner, policy.policy)
    if runner.routed_experts.apply_router_weight_on_input:
        raise ValueError(f"The experts of {layer} take their weights with their inputs: use native.")
    most = gate.most_experts(routing.num_experts)
    if policy.policy != "modality_groups" and policy.slots(routing.num_experts) > most:
        raise ValueError(
            f"The gate of {layer} chooses among {most} of its experts, and the policy {policy.policy} asks "
            f"for up to {policy.slots(routing.num_experts)}: lower its numbers of experts."
        )
    if not follows(runner, gate):
        raise ValueError(
            f"prismoe can't reproduce the weights of the gate of {layer}: it can only route by native."
        )


@torch.inference_mode()
def follows(runner: MoERunner, gate: Gate) -> bool:
    """Whether prismoe's `gate` gives the same experts and weights as vLLM's for some made-up tokens."""
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
    expected_TK = gate.scaled(weights_TK, experts_TK, logits_TE, gate.renormalises)
    weights_by_vllm_TK, experts_by_vllm_TK = router._compute_routing(hidden_TD, logits_TE, None)
    if experts_by_vllm_TK.shape != experts_TK.shape:
        return False
    expected_TE, by_vllm_TE = (
        torch.zeros_like(logits_TE).scatter_(1, picked_TK.long(), shares_TK.float())
        for picked_TK, shares_TK in (
            (experts_TK, expected_TK),
            (experts_by_vllm_TK, weights_by_vllm_TK),
        )
    )
    return torch.allclose(expected_TE, by_vllm_TE, rtol=1e-4, atol=1e-6)


def _trained(file: str | None) -> Mapping[str, Tensor]:
    if file is None:
        return {}
    if not Path(file).is_file():
        raise ValueError(
            f"The routing setting parameters names {file!r}, which is not a file: name a safetensors file."
        )
    return load_file(file)


def _parameters(
    trained: Mapping[str, Tensor], layer: int, routing: LayerRouting, hidden_size: int, device: torch.device
) -> Mapping[str, Tensor]:
    """The trained parameters of a layer's policy, from the operator's file, and its thresholds."""
    found = {}
    for name, shape in routing.policy.parameters(hidden_size, routing.num_experts).items():
        key = f"layers.{layer}.{name}"
        if key not in trained or trained[key].shape != shape:
            raise ValueError(
                f"The policy {routing.policy.policy} has parameters: name a safetensors file in the routing "
                f"setting {PARAMETERS} that has {key} of shape {shape}."
            )
        found[name] = trained[key].to(device, torch.float32)
    return found | threshold_tensors(routing.policy, device)
