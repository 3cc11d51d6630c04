"""Counters compared with a plain Python count, and sums of entropy and RPV with float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismoe.kernels.expert_load import (
    Confidence,
    LayerLoad,
    LayerShape,
    RoutedTokens,
    ScoredTokens,
    count_confidence,
    count_routed,
    empty_load,
)
from prismoe.kernels.modalities import MODALITIES
from tests.kernels.test_routing import SEGMENTS, random_logits

ROUNDING = 4e-6  # of one token
TEXT_AND_IMAGE = ("text", "image")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-1, 3), min_size=1, max_size=40),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.data(),
    st.integers(0, 2**31),
)
def test_counts_each_real_pair_once(
    modalities: list[int], experts_L: list[int], data: st.DataObject, seed: int
) -> None:
    slots_L = [data.draw(st.integers(1, experts)) for experts in experts_L]
    generator = torch.Generator().manual_seed(seed)
    tokens, layers = len(modalities), len(experts_L)
    experts_LTA = torch.full((layers, tokens, max(slots_L)), -1, dtype=torch.int32)  # like vLLM's padding
    count_LT = torch.empty(layers, tokens, dtype=torch.int32)
    for layer, (experts, slots) in enumerate(zip(experts_L, slots_L, strict=True)):
        experts_LTA[layer, :, :slots] = torch.randint(experts, (tokens, slots), generator=generator)
        count_LT[layer] = torch.randint(slots + 1, (tokens,), generator=generator)
    tail_LT = torch.rand(layers, tokens, generator=generator) < 0.5
    tail_LT &= (torch.tensor(modalities) == 1) | (torch.tensor(modalities) == 2)
    load_LMC = empty_load(layers, 4, max(experts_L))
    for times in (1, 2):
        count_routed(load_LMC, RoutedTokens(torch.tensor(modalities), experts_LTA, count_LT, tail_LT))
        for layer, shape in enumerate(zip(experts_L, slots_L, strict=True)):
            uses, by_count = np.zeros((4, shape[0]), dtype=int), np.zeros((4, shape[1] + 1), dtype=int)
            for token, modality in enumerate(modalities):
                if modality >= 0:
                    used = int(count_LT[layer, token])
                    by_count[modality, used] += 1
                    for expert in experts_LTA[layer, token, :used].tolist():
                        uses[modality, expert] += 1
            load = LayerLoad.read(load_LMC[layer], LayerShape(*shape, scored=0), MODALITIES)
            assert load.expert_tokens == (times * uses).tolist()
            assert load.tokens_by_experts == (times * by_count).tolist()
            assert load.tokens == (times * by_count.sum(axis=1)).tolist()
            assert load.tail_tokens == times * int(tail_LT[layer].sum())
            assert load.scored_tokens == load.near_ties == [0] * 4
            assert load.routing_entropy == load.routing_variance == [0] * 4


@pytest.mark.parametrize(("token", "others"), [(5, [2, 2]), (0, [1, 2])], ids=["padding", "text"])
def test_logits_that_are_nan_do_not_affect_other_tokens(token: int, others: list[int]) -> None:
    """A padded token holds values of an earlier step, or memory that was never written."""
    logits_TE, modality_T = torch.zeros(6, 4), torch.tensor([0, 0, 1, 1, -1, -1])
    logits_TE[token] = torch.nan
    load = count(
        Confidence(logits_TE), torch.zeros(6, 1), torch.ones(6), modality_T, LayerShape(4, 1, scored=4)
    )
    assert load.scored_tokens == [2, 2]
    assert load.routing_entropy == pytest.approx([np.log(4) * number for number in others], abs=ROUNDING)
    assert load.routing_variance == [0, 0]


def test_a_layer_without_confidence_adds_none_but_the_next_one_does() -> None:
    """Its rows of logits can have any values."""
    logits_LTE = torch.randn(2, 5, 4)
    scored = ScoredTokens(
        torch.zeros(5).long(),
        torch.zeros(2, 5, 1, dtype=torch.int32),
        torch.ones(2, 5, dtype=torch.int32),
        logits_LTE,
        torch.zeros(2, 5, 4),
    )
    shapes = [LayerShape(4, 1, scored=0), LayerShape(3, 1, scored=3)]
    load_LMC = empty_load(2, 2, 4)
    count_confidence(load_LMC, scored, shapes)
    without, neighbour = (
        LayerLoad.read(load_MC, shape, TEXT_AND_IMAGE)
        for load_MC, shape in zip(load_LMC, shapes, strict=True)
    )
    assert without.scored_tokens == without.near_ties == without.routing_entropy == [0, 0]
    alone = count(
        Confidence(logits_LTE[1, :, :3]), torch.zeros(5, 1), torch.ones(5), torch.zeros(5), shapes[1]
    )
    assert neighbour.scored_tokens == [5, 0]
    assert neighbour.near_ties == alone.near_ties
    assert neighbour.routing_entropy == alone.routing_entropy
    assert neighbour.routing_variance == pytest.approx(alone.routing_variance, abs=5 * ROUNDING)


def test_a_gate_whose_ranking_does_not_decide_alone_tells_no_near_ties() -> None:
    shape = LayerShape(4, 1, scored=4, has_near_ties=False)
    load = count(Confidence(torch.zeros(2, 4)), torch.zeros(2, 1), torch.ones(2), torch.zeros(2), shape)
    assert load.near_ties == [None, None]
    assert load.scored_tokens == [2, 0]


def count(
    confidence: Confidence,
    experts_TA: torch.Tensor,
    count_T: torch.Tensor,
    modality_T: torch.Tensor,
    shape: LayerShape,
) -> LayerLoad:
    """Count the confidence of one layer's step of text and images."""
    logits_TE, scores_TE = confidence
    room_TE = torch.full((len(logits_TE), shape.experts - logits_TE.shape[1]), torch.nan)
    logits_LTE = torch.cat([logits_TE, room_TE], dim=1)[None]
    if scores_TE is not None:
        shape = shape._replace(has_scores=True)
    scores_LTE = torch.cat([logits_TE if scores_TE is None else scores_TE, room_TE], dim=1)[None]
    load_LMC = empty_load(1, 2, shape.experts)
    scored = ScoredTokens(
        modality_T.long(), experts_TA[None].int(), count_T[None].int(), logits_LTE, scores_LTE
    )
    count_confidence(load_LMC, scored, [shape])
    return LayerLoad.read(load_LMC[0], shape, TEXT_AND_IMAGE)


def by_hand(
    probs_TE: np.ndarray, scores_TE: np.ndarray, counts: list[int], segments: list[int], num_experts: int
) -> dict[str, list[float]]:
    """The float64 sums over the tokens without padding."""
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
    """Count a step of the best experts and shared ones, and compare with `by_hand`."""
    count_T = torch.tensor(counts)
    probs_TE = confidence.probs_TE
    scores_TE = probs_TE if confidence.scores_TE is None else confidence.scores_TE
    ranked_TE = scores_TE.argsort(descending=True)
    shared_TA = torch.arange(ranked_TE.shape[1], num_experts).expand(len(counts), -1)
    experts_TA = torch.cat([shared_TA, ranked_TE], dim=1)[:, : max(counts)]
    unused_TA = torch.arange(max(counts)) >= count_T[:, None]
    experts_TA = torch.where(unused_TA, experts_TA[:, :1], experts_TA)
    modality_T = torch.tensor(segments).clamp(max=0) + 1
    shape = LayerShape(num_experts, max(counts), scored=probs_TE.shape[1])
    load = count(confidence, experts_TA, count_T, modality_T, shape)
    for name, expected in by_hand(
        probs_TE.double().numpy(), scores_TE.double().numpy(), counts, segments, num_experts
    ).items():
        assert getattr(load, name) == pytest.approx(expected, abs=ROUNDING * len(counts)), name
    return load


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("experts", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("segments", [*SEGMENTS.values(), [-1] * 9, [-2] * 3], ids=str)
def test_confidence_is_summed_by_modality(segments: list[int], experts: int, shared: int) -> None:
    """Tokens use the same number of experts, or different ones."""
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
            [0.4, 0.4, 0.1, 0.1],  # a tie without effect
            [0.5, 0.2, 0.2, 0.1],
            [0.5, 0.2045, 0.1955, 0.1],
            [0.5, 0.2055, 0.1945, 0.1],
            [0.25, 0.25, 0.25, 0.25],
        ]
    )
    segments = [segment] * 5
    modality = segment + 1
    assert check(Confidence(probs_TE.log()), [2] * 5, segments, 4).near_ties[modality] == 3
    assert check(Confidence(probs_TE.log()), [4] * 5, segments, 4).near_ties[modality] == 0


@pytest.mark.parametrize("segment", [-1, 0])
def test_excluded_experts_have_no_ties(segment: int) -> None:
    probs_TE = torch.tensor([[0.999, 0.001, 0.0, 0.0]])
    scores_TE = torch.tensor([[0.999, 0.001, -torch.inf, -torch.inf]])
    load = check(Confidence(probs_TE.log(), scores_TE), [2], [segment], 4)
    assert load.near_ties == [0, 0]
    assert sum(load.scored_tokens) == 1
