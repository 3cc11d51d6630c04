"""Counters against a count in plain Python, and sums of entropy and RPV against float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismoe.kernels.expert_load import (
    Confidence,
    LayerLoad,
    count_expert_load,
    empty_load,
)
from prismoe.kernels.routing import TEXT
from tests.kernels.test_routing import SEGMENTS, random_logits

ROUNDING = 4e-6  # of one token


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-2, 3), min_size=1, max_size=40), st.integers(1, 6), st.data(), st.integers(0, 2**31)
)
def test_counts_each_real_pair_once(
    segments: list[int], experts: int, data: st.DataObject, seed: int
) -> None:
    slots = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(seed)
    tokens = len(segments)
    experts_TA = torch.randint(experts, (tokens, slots), generator=generator)
    count_T = torch.randint(1, slots + 1, (tokens,), generator=generator)
    tail_T = (torch.rand(tokens, generator=generator) < 0.5) & (torch.tensor(segments) >= 0)
    uses, by_count = np.zeros((2, experts), dtype=int), np.zeros((2, slots), dtype=int)
    for token, segment in enumerate(segments):
        if segment != -2:
            modality, used = int(segment >= 0), int(count_T[token])
            by_count[modality, used - 1] += 1
            for expert in experts_TA[token, :used].tolist():
                uses[modality, expert] += 1
    load_MC = empty_load(experts)
    for times in (1, 2):
        count_expert_load(load_MC, experts_TA, count_T, tail_T, torch.tensor(segments), None)
        load = LayerLoad.read(load_MC, slots)
        assert load.expert_tokens == (times * uses).tolist()
        assert load.tokens_by_experts == (times * by_count).tolist()
        assert load.tokens == (times * by_count.sum(axis=1)).tolist()
        assert load.tail_tokens == times * int(tail_T.sum())
        assert load.scored_tokens == load.near_ties == [0, 0]
        assert load.routing_entropy == load.routing_variance == [0, 0]


def test_no_counts_and_no_tail_mean_all_slots_and_no_tail_tokens() -> None:
    said, unsaid = empty_load(5), empty_load(5)
    experts_TA, segment_T = torch.arange(21).view(7, 3) % 5, torch.arange(7) % 4 - 2
    count_expert_load(said, experts_TA, torch.full((7,), 3), segment_T > 9, segment_T, None)
    count_expert_load(unsaid, experts_TA, None, None, segment_T, None)
    assert unsaid.tolist() == said.tolist()


@pytest.mark.parametrize("equal", [True, False])
def test_no_segments_mean_text(equal: bool) -> None:
    said, unsaid = empty_load(5), empty_load(5)
    logits_TE = random_logits(9, 5)
    experts_TA = logits_TE.argsort(descending=True)[:, :3]
    step = experts_TA, None if equal else torch.arange(9) % 3 + 1, None
    count_expert_load(said, *step, torch.full((9,), TEXT), Confidence(logits_TE))
    count_expert_load(unsaid, *step, None, Confidence(logits_TE))
    assert unsaid.tolist() == said.tolist()
    assert said[0].any()
    assert not said[1].any()


@pytest.mark.parametrize(("token", "others"), [(5, [2, 2]), (0, [1, 2])], ids=["padding", "text"])
def test_logits_that_are_no_numbers_add_nothing_to_others(token: int, others: list[int]) -> None:
    """What a padded token holds is left over from some other step, or never written."""
    logits_TE, segments = torch.zeros(6, 4), torch.tensor([-1, -1, 0, 0, -2, -2])
    logits_TE[token] = torch.nan
    load_MC = empty_load(4)
    count_expert_load(load_MC, torch.zeros(6, 1).long(), None, None, segments, Confidence(logits_TE))
    load = LayerLoad.read(load_MC, 1)
    assert load.tokens == load.scored_tokens == [2, 2]
    assert load.routing_entropy == pytest.approx([np.log(4) * number for number in others], abs=ROUNDING)
    assert load.routing_variance == [0, 0]


def by_hand(
    probs_TE: np.ndarray, scores_TE: np.ndarray, counts: list[int], segments: list[int], num_experts: int
) -> dict[str, list[float]]:
    """The sums over the tokens that are no padding, in float64."""
    sums = {
        name: [0.0, 0.0] for name in ("scored_tokens", "near_ties", "routing_entropy", "routing_variance")
    }
    shared = num_experts - probs_TE.shape[1]
    for probs_E, scores_E, count, segment in zip(probs_TE, scores_TE, counts, segments, strict=True):
        if segment == -2:
            continue
        modality = int(segment >= 0)
        best = sorted(scores_E, reverse=True)
        used, unused = best[count - shared - 1], [*best, -np.inf][count - shared]
        sums["scored_tokens"][modality] += 1
        sums["near_ties"][modality] += used - unused < 0.01
        sums["routing_entropy"][modality] -= sum(p * np.log(p) for p in probs_E if p > 0)
        sums["routing_variance"][modality] += np.mean((probs_E - np.mean(probs_E)) ** 2)
    return sums


def check(confidence: Confidence, counts: list[int], segments: list[int], num_experts: int) -> LayerLoad:
    """Count a step of the best experts and shared ones, and compare with the count by hand."""
    count_T = torch.tensor(counts)
    probs_TE = confidence.probs_TE
    scores_TE = probs_TE if confidence.scores_TE is None else confidence.scores_TE
    ranked_TE = scores_TE.argsort(descending=True)
    shared_TA = torch.arange(ranked_TE.shape[1], num_experts).expand(len(counts), -1)
    experts_TA = torch.cat([shared_TA, ranked_TE], dim=1)[:, : max(counts)]
    unused_TA = torch.arange(max(counts)) >= count_T[:, None]
    experts_TA = torch.where(unused_TA, experts_TA[:, :1], experts_TA)
    no_tail_T = torch.zeros(len(counts), dtype=torch.bool)
    load_MC = empty_load(num_experts)
    count_expert_load(load_MC, experts_TA, count_T, no_tail_T, torch.tensor(segments), confidence)
    load = LayerLoad.read(load_MC, num_experts)
    for name, expected in by_hand(
        probs_TE.double().numpy(), scores_TE.double().numpy(), counts, segments, num_experts
    ).items():
        assert getattr(load, name) == pytest.approx(expected, abs=ROUNDING * len(counts)), name
    return load


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("experts", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("segments", [*SEGMENTS.values(), [-1] * 9, [-2] * 3], ids=str)
def test_confidence_is_summed_by_modality(segments: list[int], experts: int, shared: int) -> None:
    """Whether all tokens use as many experts, or each another number."""
    confidence = Confidence(random_logits(len(segments), experts))
    for most in {1, min(2, experts), experts}:
        equal = [shared + most] * len(segments)
        mixed = [shared + 1 + token % most for token in range(len(segments))]
        for counts in (equal, mixed):
            check(confidence, counts, segments, experts + shared)


@pytest.mark.parametrize("segment", [-1, 0])
def test_ties_of_the_last_used_and_the_first_unused_expert_are_counted(segment: int) -> None:
    probs_TE = torch.tensor(
        [
            [0.4, 0.4, 0.1, 0.1],  # a tie that decides nothing
            [0.5, 0.2, 0.2, 0.1],
            [0.5, 0.2045, 0.1955, 0.1],
            [0.5, 0.2055, 0.1945, 0.1],
            [0.25, 0.25, 0.25, 0.25],
        ]
    )
    segments = [segment] * 5
    assert sum(check(Confidence(probs_TE.log()), [2] * 5, segments, 4).near_ties) == 3
    assert sum(check(Confidence(probs_TE.log()), [4] * 5, segments, 4).near_ties) == 0


@pytest.mark.parametrize("segment", [-1, 0])
def test_experts_out_of_the_question_tie_with_none(segment: int) -> None:
    probs_TE = torch.tensor([[0.999, 0.001, 0.0, 0.0]])
    scores_TE = torch.tensor([[0.999, 0.001, -torch.inf, -torch.inf]])
    assert sum(check(Confidence(probs_TE.log(), scores_TE), [2], [segment], 4).near_ties) == 0
