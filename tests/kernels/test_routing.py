"""The shared routing arithmetic compared with the float64 reference, for many unusual sizes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismoe.kernels.routing import (
    ranked_by_comparison,
    ranked_experts,
    router_probabilities,
    segment_mean,
    tail_tokens,
    top_experts,
    top_experts_by_count,
)
from tests.kernels import reference

SEGMENTS = {
    "one text token": [-1],
    "one vision token": [0],
    "no vision": [-1] * 9,
    "all vision": [0] * 33,
    "two images in text": [-1, 0, 0, 0, -1, -1, 1, 1, 1, 1, 1, -1],
    "images side by side, then padding": [0] * 5 + [1] * 7 + [2] + [-2] * 3,
}


def random_logits(tokens: int, experts: int) -> torch.Tensor:
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(tokens * 31 + experts)) * 2


@pytest.mark.parametrize("experts", [2, 3, 4, 7, 64])
@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_tail_tokens_match_the_reference(segments: list[int], experts: int) -> None:
    logits_TE = random_logits(len(segments), experts)
    tail_T = tail_tokens(router_probabilities(logits_TE), torch.tensor(segments))
    assert tail_T.tolist() == reference.tail(reference.probabilities(logits_TE.numpy()), segments)


@pytest.mark.parametrize(("experts", "renormalize"), list(itertools.product([2, 3, 4, 7, 64], [True, False])))
def test_top_experts_match_the_reference(experts: int, renormalize: bool) -> None:
    tokens = 17
    logits_TE = random_logits(tokens, experts)
    counts = [1 + token % experts for token in range(tokens)]
    experts_TA, weights_TA = top_experts_by_count(logits_TE, torch.tensor(counts), experts, renormalize)
    expected = reference.experts(reference.probabilities(logits_TE.numpy()), counts, renormalize)
    for token, count in enumerate(counts):
        assert experts_TA[token, :count].tolist() == list(expected[token])
        np.testing.assert_allclose(weights_TA[token, :count], list(expected[token].values()), rtol=1e-5)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_the_same_number_of_experts_for_each_token_gives_the_same_bits(k: int, renormalize: bool) -> None:
    """A text token is routed the same alone, where slots are left out, and next to an image."""
    logits_TE = random_logits(50, 7)
    experts_TA, weights_TA = top_experts(logits_TE, k, renormalize)
    by_count = top_experts_by_count(logits_TE, torch.full((50,), k), 7, renormalize)
    assert torch.equal(experts_TA, by_count[0][:, :k])
    assert torch.equal(weights_TA, by_count[1][:, :k])


def test_an_unused_slot_repeats_the_first_expert_at_weight_0() -> None:
    logits_TE = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.3, 0.5]])
    experts_TA, weights_TA = top_experts_by_count(logits_TE, torch.tensor([1, 3]), 3, renormalize=True)
    assert experts_TA.tolist() == [[1, 1, 1], [2, 1, 0]]
    assert weights_TA[0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("experts", range(2, 9))
def test_ranking_by_comparison_equals_the_sort(experts: int) -> None:
    scores_TE = random_logits(50, experts)
    scores_TE = torch.cat([scores_TE, scores_TE.round(), scores_TE.fill_diagonal_(-torch.inf)])  # has ties
    for slots in range(1, experts + 1):
        expected, actual = ranked_experts(scores_TE, slots), ranked_by_comparison(scores_TE, slots)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_nan_scores_still_give_existing_experts() -> None:
    """A missing expert's number would corrupt memory in vLLM's CPU kernel."""
    scores_TE = torch.tensor([[torch.nan] * 4, [1.0, torch.nan, 2.0, torch.nan]])
    for rank in (ranked_experts, ranked_by_comparison):
        experts_TA, _ = rank(scores_TE, 4)
        assert (experts_TA >= 0).all()
        assert (experts_TA < 4).all()


def test_ties_take_the_lower_expert() -> None:
    experts_TA, _ = top_experts_by_count(torch.zeros(2, 4), torch.tensor([2, 4]), 4, renormalize=False)
    assert experts_TA.tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]


@pytest.mark.parametrize("tokens", [1, 3, 7, 64, 577])
def test_an_image_of_equal_tokens_has_no_tail(tokens: int) -> None:
    probs_TE = router_probabilities(random_logits(1, 4)).expand(tokens, 4)
    assert not tail_tokens(probs_TE, torch.zeros(tokens, dtype=torch.long)).any()


images = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(images, st.integers(0, 5), st.integers(0, 2**31))
def test_an_image_has_the_same_mean_at_every_position(sizes: list[int], text: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.rand(size, generator=generator) for size in sizes]
    alone = [segment_mean(value, torch.zeros(len(value), dtype=torch.long))[0].item() for value in values]
    step_T = torch.cat([torch.rand(text, generator=generator), *values])
    owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    mean_T = segment_mean(step_T, torch.cat([torch.full((text,), reference.TEXT), owners]))
    starts = text + np.cumsum([0, *sizes[:-1]])
    assert [mean_T[start].item() for start in starts] == alone
