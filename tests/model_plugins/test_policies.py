"""Policies against the float64 reference, and how the one in force is chosen."""

from typing import Any

import numpy as np
import pytest
import torch

from prismoe.model_plugins.routing.ltdr import LTDR
from prismoe.model_plugins.routing.policy import RouterInputs, Routing
from prismoe.model_plugins.routing.registry import choose_routing, policy_from_json
from prismoe.model_plugins.routing.topk import TopK
from tests.kernels import reference
from tests.kernels.test_routing import SEGMENTS, random_logits

LAYERS = {0: 4, 2: 4}


def inputs(logits_TE: torch.Tensor, segments: list[int]) -> RouterInputs:
    """A step whose requests ask nothing, for a policy that looks at the gate's logits alone."""
    segment_T, num_experts = torch.tensor(segments), logits_TE.shape[1]
    asked_T2 = torch.zeros(len(segments), 2, dtype=torch.int32)
    return RouterInputs(torch.empty(len(segments), 0), logits_TE, segment_T, asked_T2, {}, num_experts)


def used(routing: Routing) -> list[dict[int, float]]:
    rows = zip(
        routing.experts_TA.tolist(), routing.weights_TA.tolist(), routing.count_T.tolist(), strict=True
    )
    return [dict(zip(experts[:count], weights[:count], strict=True)) for experts, weights, count in rows]


def assert_same(actual: list[dict[int, float]], expected: list[dict[int, float]]) -> None:
    for mine, theirs in zip(actual, expected, strict=True):
        assert list(mine) == list(theirs)
        np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=1e-5)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("experts", [2, 4, 7])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_ltdr_matches_the_reference(segments: list[int], experts: int, renormalize: bool) -> None:
    logits_TE = random_logits(len(segments), experts)
    routing = LTDR(top_k=2, norm_topk_prob=renormalize).route(inputs(logits_TE, segments))
    probs = reference.probabilities(logits_TE.numpy())
    tail = reference.tail(probs, segments)
    assert routing.tail_T.tolist() == tail
    assert_same(used(routing), reference.experts(probs, [experts if t else 2 for t in tail], renormalize))


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_topk_matches_the_reference(segments: list[int], top_k: int) -> None:
    logits_TE = random_logits(len(segments), 5)
    routing = TopK(top_k=top_k, norm_topk_prob=top_k > 1).route(inputs(logits_TE, segments))
    probs = reference.probabilities(logits_TE.numpy())
    assert_same(used(routing), reference.experts(probs, [top_k] * len(segments), renormalize=top_k > 1))


def test_text_is_routed_alike_by_ltdr_and_topk() -> None:
    step = inputs(random_logits(11, 4), [reference.TEXT] * 11)
    ltdr = LTDR(top_k=2, norm_topk_prob=True).route(step)
    topk = TopK(top_k=2, norm_topk_prob=True).route(step)
    assert torch.equal(ltdr.experts_TA[:, :2], topk.experts_TA)
    assert torch.equal(ltdr.weights_TA[:, :2], topk.weights_TA)
    assert not ltdr.weights_TA[:, 2:].any()


def test_the_operator_comes_before_the_checkpoint_and_that_before_topk() -> None:
    operator, checkpoint = {"policy": "topk", "top_k": 1}, {"policy": "ltdr", "tail_experts": 3}
    chosen = choose_routing(operator, checkpoint, 2, LAYERS)
    assert chosen.source == "--routing"
    assert chosen.layers[2].policy == TopK(top_k=1, norm_topk_prob=False)
    chosen = choose_routing(None, checkpoint, 2, LAYERS)
    assert chosen.source == "checkpoint"
    assert chosen.layers[2].policy == LTDR(top_k=2, norm_topk_prob=True, tail_experts=3)
    chosen = choose_routing(None, None, 2, LAYERS)
    assert chosen.source == "default"
    assert chosen.layers[2].policy == TopK(top_k=2, norm_topk_prob=True)


def test_where_each_setting_was_said() -> None:
    operator = {"policy": "ltdr", "tail_experts": 3}
    assert choose_routing(operator, None, 2, LAYERS).layers[0].sources == {
        "policy": "--routing",
        "top_k": "checkpoint",
        "norm_topk_prob": "default",
        "tail_experts": "--routing",
    }


def test_a_layer_differs_from_the_others() -> None:
    operator = {"policy": "ltdr", "tail_experts": 4, "layers": {"2": {"tail_experts": 3}}}
    layers = choose_routing(operator, None, 2, LAYERS).layers
    assert layers[0].policy == LTDR(top_k=2, norm_topk_prob=True, tail_experts=4)
    assert layers[2].policy == LTDR(top_k=2, norm_topk_prob=True, tail_experts=3)


def test_a_layer_of_another_policy_starts_from_its_defaults() -> None:
    operator = {"policy": "ltdr", "top_k": 1, "tail_experts": 4, "layers": {"2": {"policy": "topk"}}}
    in_force = choose_routing(operator, None, 2, LAYERS)
    assert in_force.layers[2].policy == TopK(top_k=2, norm_topk_prob=True)
    assert in_force.needs_whole_images


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"policy": "best"}, "policy is 'best': give one of topk, ltdr"),
        ({"policy": ["topk"]}, "give one of topk, ltdr"),
        ({}, "policy is None: give one of topk, ltdr"),
        ({"policy": "ltdr", "tail": 4}, "tail: Extra inputs"),
        ({"policy": "topk", "top_k": 0}, "top_k: Input should be greater than or equal to 1"),
        ({"policy": "topk", "layers": {"1": {}, "7": {}}}, "layers names 1, 7, but the MoE layers are 0, 2."),
        ({"policy": "topk", "layers": [2]}, "layers takes an object"),
        ({"policy": "topk", "layers": {"2": 1}}, "layers takes an object"),
        ({"policy": "topk", "layers": {"2": {"tail": 1}}}, "tail: Extra inputs"),
    ],
)
def test_settings_that_are_no_policys_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match="The routing settings in --routing cannot be used") as error:
        choose_routing(settings, None, 2, LAYERS)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    "policy", [TopK(top_k=5, norm_topk_prob=True), LTDR(top_k=2, norm_topk_prob=True, tail_experts=9)]
)
def test_more_experts_than_the_layer_has_are_refused(policy: TopK | LTDR) -> None:
    with pytest.raises(ValueError, match="4 experts"):
        policy.slots(num_experts=4)


def test_a_policy_survives_its_json() -> None:
    policy = LTDR(top_k=2, norm_topk_prob=False, tail_experts=3)
    assert policy_from_json(policy.model_dump_json()) == policy
