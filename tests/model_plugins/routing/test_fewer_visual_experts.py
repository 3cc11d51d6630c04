"""FastMMoE's fewer experts for visual tokens (arXiv 2511.17885), as settings of `ltdr` for each layer."""

from typing import Any

import numpy as np
import pytest
import torch

from prismoe.model_plugins.routing.any_gate import OperatorPolicies
from prismoe.model_plugins.routing.registry import RoutingInForce, choose_routing
from tests.kernels.test_routing import SEGMENTS
from tests.model_plugins.routing.gate_reference import GateRule
from tests.model_plugins.routing.policy_reference import Pairs, best
from tests.model_plugins.routing.test_gates import GATES, make_gate, random_step, used

EXPERTS, K, VISUAL, FIRST, LAYERS = 18, 4, 2, 2, 4
"""Visual tokens use 2 of a layer's 18 experts from layer 2 on, and 4 before it, like text."""
SETTING: dict[str, Any] = {
    "policy": "ltdr",
    "threshold": 1,
    "head_experts": VISUAL,
    "tail_experts": VISUAL,
    "request_experts": 0,
    "layers": {str(layer): {"policy": "topk"} for layer in range(FIRST)},
}


def fewer_visual_experts(gate: GateRule, layer: int, logits: np.ndarray, is_visual: bool) -> Pairs:
    """A visual token keeps the best of the gate's k experts, weighed as the gate weighs that number."""
    chosen = best(gate.ranking(logits), K)
    return gate.weigh(chosen[:VISUAL] if is_visual and layer >= FIRST else chosen, logits)


def in_force(renormalises: bool | None) -> RoutingInForce:
    return choose_routing(SETTING, None, K, dict.fromkeys(range(LAYERS), EXPERTS), renormalises)


NATIVE: dict[str, Any] = {}
"""MoE-LLaVA's gate: a softmax, renormalised if k is more than 1."""


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
@pytest.mark.parametrize(
    ("gate", "is_native"),
    [(NATIVE, True), *((gate, False) for gate in GATES.values())],
    ids=["MoE-LLaVA's", *GATES],
)
def test_the_setting_is_the_papers_rule(gate: dict[str, Any], is_native: bool, segments: list[int]) -> None:
    seen, rule = make_gate(gate, EXPERTS)
    layers = in_force(None if is_native else seen.renormalises).layers
    for layer, routing in layers.items():
        step = random_step(routing.policy, segments, EXPERTS, seen)
        logits_TE = step.logits_TE.double().numpy()
        for mine, row, is_visual in zip(
            used(routing.policy, seen, step), logits_TE, step.is_vision_T.tolist(), strict=True
        ):
            theirs = fewer_visual_experts(rule, layer, row, is_visual)
            assert [expert for expert, _ in mine] == [expert for expert, _ in theirs]
            np.testing.assert_allclose([w for _, w in mine], [w for _, w in theirs], rtol=5e-5)


def test_visual_tokens_run_only_the_experts_that_they_use() -> None:
    layers = in_force(None).layers
    assert [layers[layer].policy.slots(EXPERTS) for layer in range(LAYERS)] == [K] * LAYERS
    step = random_step(layers[FIRST].policy, [-1, 0, 0], EXPERTS, make_gate(NATIVE, EXPERTS)[0])
    assert layers[FIRST].policy.route(step).count_T.tolist() == [K, VISUAL, VISUAL]


def test_no_token_is_above_the_threshold_and_no_image_is_needed_whole() -> None:
    """RPV is below 1. So even a token whose probability is all on one expert is not a tail token."""
    OperatorPolicies.of(SETTING)  # like for vLLM's own models
    policy = in_force(None).layers[FIRST].policy
    step = random_step(policy, [0, 0], 6, make_gate(NATIVE, 6)[0])
    step = step._replace(logits_TE=torch.tensor([[1e4, 0, 0, 0, 0, 0]] * 2))
    assert not policy.route(step).tail_T.any()
    assert not policy.needs_whole_images
