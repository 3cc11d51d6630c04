"""The diagnostics against plain NumPy, and at their ends."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prismoe.kernels.diagnostics import (
    expert_distance,
    load_variation,
    mean_routing_entropy,
    tail_share,
)
from tests.kernels import reference
from tests.kernels.test_routing import SEGMENTS, random_logits

loads = st.lists(st.integers(0, 50), min_size=5, max_size=5)


@given(st.lists(loads.filter(any), min_size=1, max_size=4))
def test_load_variation(layers: list[list[int]]) -> None:
    expected = np.mean([np.std(layer) / np.mean(layer) for layer in layers])
    assert load_variation(torch.tensor(layers)).item() == pytest.approx(expected)


def test_even_and_empty_layers_do_not_vary() -> None:
    assert load_variation(torch.tensor([[7, 7, 7], [0, 0, 0]])) == 0


@pytest.mark.parametrize("experts", [2, 4, 7])
def test_routing_entropy(experts: int) -> None:
    logits_TE = random_logits(9, experts)
    probs = reference.probabilities(logits_TE.numpy())
    expected = -(probs * np.log(probs)).sum(axis=1).mean()
    assert mean_routing_entropy(logits_TE).item() == pytest.approx(expected, rel=1e-5)


def test_routing_entropy_at_its_ends() -> None:
    assert mean_routing_entropy(torch.zeros(3, 8)).item() == pytest.approx(np.log(8))
    assert mean_routing_entropy(torch.tensor([[0.0, 500.0]])) == 0


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_tail_share(segments: list[int]) -> None:
    logits_TE = random_logits(len(segments), 4)
    tail = reference.tail(reference.probabilities(logits_TE.numpy()), segments)
    vision = sum(segment >= 0 for segment in segments)
    assert tail_share(logits_TE, torch.tensor(segments)).item() == pytest.approx(sum(tail) / max(vision, 1))


@given(loads.filter(any), loads.filter(any))
def test_expert_distance(left: list[int], right: list[int]) -> None:
    p, q = np.array(left) / sum(left), np.array(right) / sum(right)
    middle = (p + q) / 2
    divergence = sum(
        0.5 * share * np.log2(share / mean)
        for shares in (p, q)
        for share, mean in zip(shares, middle, strict=True)
        if share > 0
    )
    actual = expert_distance(torch.tensor(left), torch.tensor(right)).item()
    assert actual == pytest.approx(np.sqrt(max(divergence, 0)), abs=1e-6)
    assert 0 <= actual <= 1
