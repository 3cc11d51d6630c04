"""A layer under a policy and back under its own router: the experts that it uses and writes down."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from prismoe.model_plugins.moe_layer.attached.policies import PolicyLayer, shape_of
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.routing.policy import RouterInputs
from prismoe.model_plugins.routing.registry import POLICIES, LayerRouting
from prismoe.model_plugins.routing.thresholds import threshold_tensors, thresholds_of
from prismoe.model_plugins.vllm_seams.engine.native_router import replace_routing
from tests.kernels.test_routing import SEGMENTS
from tests.model_plugins.routing import gate_reference
from tests.model_plugins.routing.gate_reference import GateRule, GateStep
from tests.model_plugins.routing.test_gates import CASES, GATES, K, make_gate, make_policy, random_step

VLLMS: dict[str, dict[str, Any]] = {
    "softmax": {"renormalize": False},
    "softmax, renormalised": {},
    "sigmoid in groups": {"use_grouped_topk": True, "num_expert_group": 3, "topk_group": 2},
}
"""CPURouter's settings for some of GATES."""
POLICIES_TRIED = CASES | {
    "narrower": {"policy": "topk", "top_k": 1},
    "wider": {"policy": "topk", "top_k": 5},
}


def holds(name: str, gate_name: str, num_experts: int) -> bool:
    """Whether the gate chooses as many experts as the policy may use. The start refuses the others."""
    gate, _ = make_gate(GATES[gate_name], num_experts)
    policy = make_policy(POLICIES_TRIED[name], gate.renormalises)
    return policy.policy == "modality_groups" or policy.slots(num_experts) <= gate.most_experts(num_experts)


LAYERS = [
    pytest.param(POLICIES_TRIED[name], gate, experts, id=f"{name}, {gate}, {experts} experts")
    for name, gate, experts in itertools.product(POLICIES_TRIED, VLLMS, (6, 18))
    if holds(name, gate, experts)
]
Compute = Callable[[Tensor, Tensor, None], tuple[Tensor, Tensor]]


class Layer(NamedTuple):
    """A layer under a policy, and the same layer without one."""

    inputs: RouterInputs
    policy: Any
    rule: GateRule
    step: RoutingStep
    is_native: Tensor
    compute: Compute
    alone: Compute
    chooser: PolicyLayer

    def run(self, is_native: bool) -> tuple[Tensor, Tensor]:
        """Run a step, and return its weights and experts."""
        self.is_native.fill_(is_native)
        weights_TA, experts_TA = self.compute(self.inputs.hidden_TD, self.inputs.logits_TE, None)
        slots = weights_TA.shape[1]
        assert torch.equal(self.step.experts[0, :, :slots], experts_TA)
        assert torch.equal(self.step.weights[0, :, :slots], weights_TA)
        return weights_TA, experts_TA

    def check_native(self) -> None:
        weights_TA, experts_TA = self.run(is_native=True)
        theirs_TK, chosen_TK = self.alone(self.inputs.hidden_TD, self.inputs.logits_TE, None)
        assert torch.equal(weights_TA[:, :K], theirs_TK)
        assert torch.equal(experts_TA[:, :K], chosen_TK)
        assert not weights_TA[:, K:].any()
        assert torch.equal(experts_TA[:, K:], chosen_TK[:, :1].expand(-1, weights_TA.shape[1] - K))
        self.check_written([K] * len(theirs_TK))
        assert not self.step.tails.any()
        logits_TE, scores_TE = self.inputs.confidence
        assert torch.equal(self.step.logits[0], logits_TE)
        if self.step.layers[0].has_scores:
            ranking_TE = self.inputs.confidence.probs_TE if scores_TE is None else scores_TE
            assert torch.equal(self.step.scores[0], ranking_TE)

    def check_policy(self) -> None:
        weights_TA, experts_TA = self.run(is_native=False)
        expected = gate_reference.routed(
            self.policy,
            self.rule,
            GateStep(
                self.inputs.logits_TE.numpy(),
                self.inputs.is_vision_T.tolist(),
                {name: value.double().numpy() for name, value in self.inputs.parameters.items()},
            ),
        )
        self.check_written([len(pairs) for pairs in expected])
        for experts, weights, pairs in zip(experts_TA.tolist(), weights_TA.tolist(), expected, strict=True):
            mine = sorted(zip(experts[: len(pairs)], weights, strict=False))
            assert [expert for expert, _ in mine] == sorted(expert for expert, _ in pairs)
            np.testing.assert_allclose(
                [weight for _, weight in mine], [weight for _, weight in sorted(pairs)], rtol=5e-5
            )
            assert not any(weights[len(pairs) :])
            assert {*experts[len(pairs) :]} <= {experts[0]}
        routing = self.policy.route(self.inputs)
        assert torch.equal(self.step.tails[0], routing.tail_T)
        assert torch.equal(self.step.logits[0], routing.confidence.logits_TE)
        if routing.confidence.scores_TE is not None:
            assert torch.equal(self.step.scores[0], routing.confidence.scores_TE)

    def check_written(self, counts: list[int]) -> None:
        """Check the counted parts, including those that are declared constant."""
        assert self.step.counts[0].tolist() == counts
        if self.step.layers[0].uses_all_slots:
            assert {*counts} == {self.step.layers[0].slots}


def make_layer(
    settings: dict[str, Any],
    gate_name: str,
    segments: list[int],
    num_experts: int = 18,
    compiled: bool = False,
) -> Layer:
    gate, rule = make_gate(GATES[gate_name], num_experts)
    policy = make_policy(settings, gate.renormalises)
    inputs = random_step(policy, segments, num_experts, gate)
    inputs = inputs._replace(parameters={**inputs.parameters, **threshold_tensors(policy, "cpu")})
    routing = LayerRouting(policy, {}, 0, num_experts)
    shape = shape_of(routing, gate, K)
    step = RoutingStep(("text", "image"), [shape], len(segments))
    step.tokens.mark(None, [], len(segments))
    if not inputs.is_text:
        step.tokens.segments.copy_(inputs.segment_T)
        step.tokens._is_text = False
    is_native = torch.zeros((), dtype=torch.bool)
    layer = PolicyLayer(routing, gate, step, 0, inputs.parameters, shape.slots, is_native)

    def router() -> CPURouter:
        return CPURouter(
            K,
            num_experts,
            scoring_func=gate.scoring or "",
            e_score_correction_bias=gate.bias_E,
            routed_scaling_factor=gate.scale,
            **VLLMS[gate_name],
        )

    replaced = router()
    replace_routing(replaced, layer.decide)
    compute: Any = replaced._compute_routing
    if compiled:
        torch.compiler.reset()
        compute = torch.compile(compute, fullgraph=True, backend="aot_eager")
    return Layer(inputs, policy, rule, step, is_native, compute, router()._compute_routing, layer)


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
@pytest.mark.parametrize(("settings", "gate", "num_experts"), LAYERS)
def test_a_layer_uses_its_policys_or_its_routers_experts(
    settings: dict[str, Any], gate: str, num_experts: int, segments: list[int]
) -> None:
    layer = make_layer(settings, gate, segments, num_experts)
    layer.check_policy()
    layer.check_native()
    layer.check_policy()


@pytest.mark.parametrize("gate", VLLMS)
@pytest.mark.parametrize("settings", POLICIES_TRIED.values(), ids=POLICIES_TRIED.keys())
def test_a_compiled_layer_changes_without_recompilation(settings: dict[str, Any], gate: str) -> None:
    layer = make_layer(settings, gate, SEGMENTS["two images in text"], compiled=True)
    layer.check_policy()
    with torch.compiler.set_stance("fail_on_recompile"):
        layer.check_native()
        layer.check_policy()


THRESHOLDS = {
    "fewer for heads": {"threshold": 0.02},
    "skipping": {"vision_threshold": 0.45, "text_threshold": 0.2},
    "entropy": {"low": 0.3, "high": 0.8},
}
"""Other thresholds for some of CASES."""


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("case", "thresholds"), THRESHOLDS.items(), ids=THRESHOLDS.keys())
def test_a_layer_uses_other_thresholds_without_recompilation(
    case: str, thresholds: dict[str, float], compiled: bool
) -> None:
    layer = make_layer(CASES[case], "softmax", SEGMENTS["two images in text"], compiled=compiled)
    layer.check_policy()
    weights_TA, _ = before = layer.run(is_native=False)
    old = thresholds_of(layer.policy)
    assert old.keys() == thresholds.keys()
    for values in (thresholds, old):
        for name, value in values.items():
            layer.inputs.parameters[name].fill_(value)
        with torch.compiler.set_stance("fail_on_recompile"):
            layer._replace(policy=layer.policy.model_copy(update=values)).check_policy()
            assert torch.equal(layer.run(is_native=False)[0], weights_TA) == (values is old)
    assert all(map(torch.equal, layer.run(is_native=False), before))


def test_each_threshold_is_tested() -> None:
    tried = {(CASES[case]["policy"], name) for case, values in THRESHOLDS.items() for name in values}
    there = {(name, threshold) for name, kind in POLICIES.items() for threshold in kind.thresholds}
    assert tried == there, "Give each threshold of a policy another value in THRESHOLDS above."


@pytest.mark.parametrize("is_native", [True, False])
def test_an_observer_that_is_removed_leaves_nothing(is_native: bool) -> None:
    layer = make_layer({"policy": "topk", "top_k": 1}, "softmax", SEGMENTS["two images in text"])
    layer.is_native.fill_(is_native)

    def take_away(_hidden: Tensor, _logits: Tensor, _experts: Tensor, weights_TA: Tensor) -> None:
        weights_TA[2:].zero_()

    layer.chooser.observer = take_away
    weights_TA, experts_TA = layer.compute(layer.inputs.hidden_TD, layer.inputs.logits_TE, None)
    assert weights_TA.shape == experts_TA.shape
    assert weights_TA[:2, 0].all() and not weights_TA[2:].any()


@pytest.mark.parametrize("settings", POLICIES_TRIED.values(), ids=POLICIES_TRIED.keys())
def test_the_layers_slots_are_enough_for_both_choices(settings: dict[str, Any]) -> None:
    layer = make_layer(settings, "softmax", SEGMENTS["two images in text"])
    slots = layer.policy.slots(18)
    assert layer.step.layers[0].slots == max(slots, K)
    assert layer.step.layers[0].uses_all_slots == (layer.policy.uses_all_slots and slots == K)


@pytest.mark.parametrize("gate", VLLMS)
@pytest.mark.parametrize("settings", POLICIES_TRIED.values(), ids=POLICIES_TRIED.keys())
def test_a_policy_knows_whether_its_confidence_is_the_gates(settings: dict[str, Any], gate: str) -> None:
    seen, _ = make_gate(GATES[gate], 18)
    policy = make_policy(settings, seen.renormalises)
    step = random_step(policy, SEGMENTS["two images in text"], 18, seen)
    theirs, own = step.confidence, policy.route(step).confidence
    is_gates = torch.equal(theirs.logits_TE, own.logits_TE) and (
        theirs.scores_TE is own.scores_TE
        or (theirs.scores_TE is not None and torch.equal(theirs.scores_TE, own.scores_TE))
    )
    assert is_gates == policy.gives_gate_confidence


def test_each_policy_for_any_gate_is_tested() -> None:
    tried = {settings["policy"] for settings in POLICIES_TRIED.values()}
    lacks = {name for name, kind in POLICIES.items() if kind.takes_any_gate} - tried
    assert not lacks, (
        f"{', '.join(sorted(lacks))} takes any gate: add it to CASES of tests/model_plugins/routing/"
        "test_gates.py, and its rule to RULES of gate_reference.py there."
    )
    assert tried <= {name for name, kind in POLICIES.items() if kind.takes_any_gate}
