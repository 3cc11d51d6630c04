"""Steps that are counted later give the load that they give at once."""

import itertools

import pytest
import torch

from prismoe.kernels.expert_load import Confidence, count_expert_load, empty_load
from prismoe.kernels.pending_steps import KEPT_PAIRS, WAITING_STEPS, WAITING_TOKENS, PendingSteps
from tests.kernels.test_routing import random_logits


@pytest.mark.parametrize("confident", [True, False])
def test_steps_can_be_counted_later(confident: bool) -> None:
    at_once, later = empty_load(7), empty_load(7)
    kept = PendingSteps(later)
    most = KEPT_PAIRS // 7
    for tokens in (1, 30, 9, most + 1, WAITING_TOKENS, most - WAITING_TOKENS + 1, most, 1, 4):
        logits_TE = random_logits(tokens, 7)
        segment_T = torch.arange(tokens) % 4 - 2
        experts_TA, count_T = logits_TE.argsort(descending=True)[:, :3], torch.arange(tokens) % 3 + 1
        confidence = Confidence(logits_TE) if confident else None
        step = (experts_TA, count_T, segment_T == 1, segment_T, confidence)
        count_expert_load(at_once, *step)
        kept.keep(*step)
    assert 0 < later[:, 7].sum() < at_once[:, 7].sum()  # the last two are yet to be counted
    kept.count()
    kept.count()
    assert later.tolist() == at_once.tolist()


def test_steps_of_other_kinds_are_kept_apart() -> None:
    """As where just some steps have images, tokens that use fewer slots, or scores of their own."""
    at_once, later = empty_load(7), empty_load(7)
    kept = PendingSteps(later)
    for slots, is_plain, has_scores in itertools.product((2, 4), (True, False), (True, False, True)):
        logits_TE = random_logits(30, 7)
        segment_T = torch.arange(30) % 4 - 2
        experts_TA = logits_TE.argsort(descending=True)[:, :slots]
        count_T, tail_T = (None, None) if is_plain else (torch.arange(30) % 4 + 1, segment_T == 1)
        if count_T is not None:
            count_T = count_T.clamp(max=slots)
        scores_TE = logits_TE.softmax(dim=1) + 0.1 if has_scores else None
        step = (
            experts_TA,
            count_T,
            tail_T,
            None if is_plain else segment_T,
            Confidence(logits_TE, scores_TE),
        )
        count_expert_load(at_once, *step)
        kept.keep(*step)
    kept.count()
    assert later.tolist() == at_once.tolist()


def test_many_small_steps_are_counted() -> None:
    """They wait, are copied, and fill the room for those that were copied."""
    load_MC = empty_load(2**7)
    kept = PendingSteps(load_MC)
    for _ in range(KEPT_PAIRS // 2**7 + WAITING_STEPS):
        kept.keep(torch.tensor([[0]]), None, None, None, None)
    assert load_MC[0, 0] == KEPT_PAIRS // 2**7
    kept.count()
    assert load_MC[0, 0] == KEPT_PAIRS // 2**7 + WAITING_STEPS


def test_what_is_forgotten_is_not_counted() -> None:
    load_MC = empty_load(2)
    kept = PendingSteps(load_MC)
    one_T = torch.tensor([1])
    kept.keep(torch.tensor([[0]]), one_T, one_T > 1, -one_T, None)
    kept.forget()
    kept.count()
    assert not load_MC.any()
