"""Reserved slots: the slots of text, and the published equity that the served policy reaches with them."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prismoe.kernels.balance import modality_equity
from prismoe.model_plugins.routing.policies.equiroute import EquiRoute
from prismoe.model_plugins.routing.policy import RouterInputs
from prismoe.training.equiroute_experiment import EXPERTS, PUBLISHED, RATIOS, VISION_TOKENS
from tests.model_plugins.routing.routing_steps import random_step

DRAWS = 60


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(
    num_experts=st.integers(2, 19),
    top_k=st.integers(1, 6),
    reserved_slots=st.integers(1, 5),
    num_reserved=st.integers(0, 19),
    seed=st.integers(0, 9),
    is_even=st.booleans(),
)
def test_a_text_token_gets_its_reserved_slots_and_keeps_its_k(
    num_experts: int, top_k: int, reserved_slots: int, num_reserved: int, seed: int, is_even: bool
) -> None:
    plain = EquiRoute(top_k=min(top_k, num_experts), norm_topk_prob=True)
    served = plain.model_copy(update={"reserved_slots": min(reserved_slots, num_experts - plain.top_k)})
    step = random_step(served, [-1, 0, 0, -1, 1, -1, -2], num_experts, seed)
    step.parameters["reservation"][:] = 0
    order = torch.randperm(num_experts, generator=torch.Generator().manual_seed(seed))
    reserved = order[:num_reserved]
    step.parameters["reservation"][0, reserved] = 0.5
    if is_even:
        step.logits_TE[:] = 0
    own, more = plain.route(step), served.route(step)
    for token, segment in enumerate([-1, 0, 0, -1, 1, -1, -2]):
        k_best = own.experts_TA[token].tolist()
        uses = more.experts_TA[token, : int(more.count_T[token])].tolist()
        assert uses[: plain.top_k] == k_best
        assert len({*uses}) == len(uses)
        left = {*reserved.tolist()} - {*k_best} if segment < 0 else set()
        assert {*uses[plain.top_k :]} <= left
        assert len(uses) == plain.top_k + min(served.reserved_slots, len(left))
        assert math.isclose(float(more.weights_TA[token].sum()), 1, rel_tol=1e-5)


@pytest.mark.parametrize("ratio", RATIOS)
def test_reserved_slots_reach_the_published_equity(ratio: int) -> None:
    """At top-1, on the tokens of the paper's experiment. Experts out of text's reach are reserved for it."""
    means = {slots: sum(equity(ratio, slots, seed) for seed in range(DRAWS)) / DRAWS for slots in (0, 3)}
    assert means[0] < PUBLISHED[ratio].equiroute_mei - 0.05
    assert means[3] > PUBLISHED[ratio].equiroute_mei


def equity(ratio: int, reserved_slots: int, seed: int) -> float:
    """The MEI of one draw under the served policy."""
    generator = torch.Generator().manual_seed(seed)
    text_TE, vision_TE = (
        torch.randn(tokens, EXPERTS, generator=generator)
        for tokens in (VISION_TOKENS // ratio, VISION_TOKENS)
    )
    reservation_2E = torch.zeros(2, EXPERTS)
    reservation_2E[0, text_TE.argmax(dim=1).bincount(minlength=EXPERTS) == 0] = 1e-6  # practically no bonus
    segments = [-1] * len(text_TE) + [0] * VISION_TOKENS
    routing = EquiRoute(top_k=1, norm_topk_prob=False, reserved_slots=reserved_slots).route(
        inputs(torch.cat([text_TE, vision_TE]), segments, reservation_2E)
    )
    used_2E = torch.zeros(2, EXPERTS, dtype=torch.int64)
    for segment, experts, count in zip(segments, routing.experts_TA, routing.count_T.tolist(), strict=True):
        used_2E[segment + 1] += experts[:count].bincount(minlength=EXPERTS)
    return modality_equity(used_2E.numpy(), ("text", "image"), least_share=0)


def inputs(logits_TE: Tensor, segments: list[int], reservation_2E: Tensor) -> RouterInputs:
    tokens = len(segments)
    own: dict[str, Any] = {"pressure": torch.ones(2, 1), "reservation": reservation_2E}
    asks_nothing_T2 = torch.zeros(tokens, 2, dtype=torch.int32)
    return RouterInputs(
        torch.empty(tokens, 0), logits_TE, torch.tensor(segments), asks_nothing_T2, own, EXPERTS
    )


def test_a_near_tie_for_a_reserved_slot_is_counted() -> None:
    """The scores put both kinds of slots on one scale: 0 is the last one that won."""
    policy = EquiRoute(top_k=1, norm_topk_prob=False, reserved_slots=1)
    logits_TE = torch.tensor([[3.0, 1.0, 0.0, 0.0, -0.001]])
    reservation_2E = torch.tensor([[0, 0, 0, 1e-6, 1e-6], [0.0] * 5])
    routing = policy.route(inputs(logits_TE, [-1], reservation_2E)._replace(num_experts=5))
    assert routing.experts_TA.tolist() == [[0, 3]]
    assert routing.confidence is not None
    assert routing.confidence.scores_TE is not None
    scores = routing.confidence.scores_TE[0]
    assert scores[[0, 3]].tolist() == [0, 0]
    assert -0.001 < scores[4] < 0
    assert max(scores[[1, 2]]) < -0.5
