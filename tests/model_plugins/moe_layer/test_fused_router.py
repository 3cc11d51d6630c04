"""The fused router compared with the plain form of every policy, in Triton's interpreter."""

from typing import Any

import pytest
import torch

from prismoe.kernels.fused_rule import FusedRule
from prismoe.kernels.triton.router import fused_router
from prismoe.model_plugins.routing.policy import RouterInputs, RoutingPolicy
from prismoe.model_plugins.routing.thresholds import threshold_tensors
from tests.kernels.test_routing import SEGMENTS
from tests.model_plugins.routing.routing_steps import (
    CASES,
    least_experts,
    make,
    random_step,
    with_request_logits,
)
from tests.triton_interpreter import interpret_triton  # noqa: F401

FUSED = {case: settings for case, settings in CASES.items() if settings["policy"] not in ("gmm", "top_any")}
for case in ("bias of sigmoids", "equiroute with a reserved slot", "equiroute with two reserved slots"):
    del FUSED[case]
EVERY_RULE = pytest.mark.parametrize("settings", FUSED.values(), ids=FUSED.keys())
LONG = {
    "images over several blocks": [0] * 50 + [-1] * 20 + [1] * 300 + [2] * 3 + [-2] * 4,
    "one token more than a tile": [0] * 129,
    "a short image before a long one": [0] * 20 + [1] * 300,
    "more tokens than are scanned at once": [-1] * 1020 + [0] * 300,
}


def rule_of(policy: RoutingPolicy, step: RouterInputs) -> FusedRule:
    rule = policy.fused_rule(step)
    assert isinstance(rule, FusedRule)
    return rule


def assert_same_decision(policy: RoutingPolicy, step: RouterInputs) -> None:
    expected = policy.route(step._replace(is_text=False))
    rule = rule_of(policy, step)
    actual = fused_router(rule, step.segment_T)
    assert actual.experts_TA.tolist() == expected.experts_TA.tolist()
    torch.testing.assert_close(actual.weights_TA, expected.weights_TA, rtol=2e-6, atol=1e-7)
    assert actual.count_T.tolist() == expected.count_T.tolist()
    assert (actual.tail_T is None) == (expected.given_tail_T is None)
    if actual.tail_T is not None:
        assert actual.tail_T.tolist() == expected.tail_T.tolist()
    for mine, theirs in zip(rule.confidence, expected.confidence or (), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("case", ["ltdr of heads by threshold", "two thresholds", "entropy within bounds"])
def test_it_reads_thresholds_that_can_change(case: str) -> None:
    policy = make(FUSED[case])
    step = random_step(policy, SEGMENTS["two images in text"], 7)
    before = fused_router(rule_of(policy, step), step.segment_T)
    step = step._replace(parameters=threshold_tensors(policy, "cpu"))
    after = fused_router(rule_of(policy, step), step.segment_T)
    assert all(torch.equal(*parts) for parts in zip(before[:3], after[:3], strict=True))
    for number in step.parameters.values():
        number.mul_(0.5)
    assert_same_decision(policy, step)
    changed = fused_router(rule_of(policy, step), step.segment_T)
    assert not torch.equal(changed.count_T, before.count_T)


@pytest.mark.slow
@EVERY_RULE
@pytest.mark.parametrize("num_experts", [4, 7])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_it_decides_like_the_policy(settings: dict[str, Any], segments: list[int], num_experts: int) -> None:
    policy = make(settings)
    assert_same_decision(policy, random_step(policy, segments, num_experts))


@pytest.mark.slow
@EVERY_RULE
def test_it_decides_like_the_policy_for_many_experts(settings: dict[str, Any]) -> None:
    policy = make(settings)
    assert_same_decision(policy, random_step(policy, [-1] * 9 + [0] * 50 + [1] * 71, 64))


@pytest.mark.parametrize("segments", LONG.values(), ids=LONG.keys())
def test_it_uses_every_token_of_an_image(segments: list[int]) -> None:
    """The last token raises the mean far above all others, so that none of them is a tail token."""
    policy = make(CASES["ltdr"])
    step = random_step(policy, segments, 4)
    step.logits_TE.mul_(1e-3)
    last = max(token for token, segment in enumerate(segments) if segment >= 0)
    step.logits_TE[last] = torch.tensor([9.0, 0, 0, 0])
    assert policy.route(step).tail_T.nonzero().flatten().tolist()[-1] == last
    assert_same_decision(policy, step)


@EVERY_RULE
def test_equal_scores_choose_the_lower_experts(settings: dict[str, Any]) -> None:
    policy = make(settings)
    step = random_step(policy, [-1, 0, 0], 4)
    step = step._replace(
        logits_TE=torch.zeros_like(step.logits_TE),
        parameters={name: torch.ones_like(value) for name, value in step.parameters.items()},
    )
    assert_same_decision(policy, with_request_logits(policy, step))


@EVERY_RULE
def test_any_content_of_padding_gives_existing_experts(settings: dict[str, Any]) -> None:
    """A missing expert's number would make a kernel read beyond the weights.

    Other tokens are not affected.
    """
    policy = make(settings)
    step = random_step(policy, [-1, 0, 0, -2, -2, -2], 7)
    clean = fused_router(rule_of(policy, step), step.segment_T)
    step.logits_TE[3] = torch.nan
    step.logits_TE[4] = torch.inf
    step.logits_TE[5, :1] = torch.nan
    spoiled = fused_router(rule_of(policy, step), step.segment_T)
    assert spoiled.experts_TA.min() >= 0
    assert spoiled.experts_TA.max() < 7
    assert spoiled.count_T.min() >= least_experts(policy)
    assert spoiled.count_T.max() <= policy.slots(7)
    assert spoiled.weights_TA[5].isfinite().all()
    for before, after in zip(clean, spoiled, strict=True):
        if before is not None:
            assert after is not None and torch.equal(before[:3], after[:3])


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("ltdr")])
@pytest.mark.parametrize("asked", [(3, 1), (0, 1), (4, 0), (100, 100)])
def test_a_request_sets_numbers_of_experts(case: str, asked: tuple[int, int]) -> None:
    policy = make(CASES[case])
    step = random_step(policy, SEGMENTS["two images in text"], 4)
    step.asked_T2[1:4] = torch.tensor(asked)
    assert_same_decision(policy, step)


def test_no_token_of_a_uniform_image_is_a_tail_token() -> None:
    policy = make(CASES["ltdr"])
    step = random_step(policy, [0] * 600, 7)
    step = step._replace(logits_TE=step.logits_TE[:1].expand(600, -1))
    tail_T = fused_router(rule_of(policy, step), step.segment_T).tail_T
    assert tail_T is not None
    assert not tail_T.any()


def test_an_expert_chosen_only_by_its_bias_has_a_weight() -> None:
    policy = make({"policy": "bias_corrected", "top_k": 1, "norm_topk_prob": True})
    step = random_step(policy, [0], 4)._replace(logits_TE=torch.tensor([[0.0, 200.0, 0.0, 0.0]]))
    step = step._replace(parameters={"expert_bias": torch.tensor([0.0, 0.0, 0.0, 9.0])})
    assert_same_decision(policy, step)
