"""The statistics of expert load, compared with plain arithmetic and their promised properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismoe.kernels import balance
from prismoe.kernels.modalities import MODALITIES

EVEN = [[10, 10, 10, 10], [640, 640, 640, 640]]
APART = [[10, 10, 0, 0], [0, 0, 320, 320]]
ONLY_VISION = [[0, 0, 0], [5, 6, 7]]
BOTH = ("text", "image")


@st.composite
def layers(draw: st.DrawFn) -> np.ndarray:
    """One layer's counts: 1 to 9 experts, often with zeros and ties."""
    experts = draw(st.integers(1, 9))
    row = st.lists(st.integers(0, 40), min_size=experts, max_size=experts)
    return np.array([draw(row), draw(row)], dtype=np.int64)


def same(value: float, expected: float) -> bool:
    return math.isclose(value, expected, abs_tol=1e-12) or (math.isnan(value) and math.isnan(expected))


@given(layers())
def test_variation(used_ME: np.ndarray) -> None:
    load = [int(text + vision) for text, vision in used_ME.T]
    mean = sum(load) / len(load)
    expected = math.nan
    if mean:
        expected = math.sqrt(sum((count - mean) ** 2 for count in load) / len(load)) / mean
    assert same(balance.variation(used_ME.sum(axis=0)), expected)
    assert not expected > math.sqrt(len(load) - 1) + 1e-12


@given(layers())
def test_modality_equity(used_ME: np.ndarray) -> None:
    uses = [
        {expert for expert, count in enumerate(row) if 2 * len(row) * int(count) >= sum(row)}
        for row in used_ME.tolist()
    ]
    expected = math.nan
    if used_ME.any(axis=1).all():
        expected = len(uses[0] & uses[1]) / used_ME.shape[1]
    assert same(balance.modality_equity(used_ME, BOTH), expected)


@given(layers(), st.integers(2, 50))
def test_modality_equity_does_not_depend_on_the_amount_of_vision(used_ME: np.ndarray, more: int) -> None:
    more_vision_ME = used_ME * np.array([[1], [more]])
    index = balance.modality_equity(used_ME, BOTH)
    assert same(balance.modality_equity(more_vision_ME, BOTH), index)


@pytest.mark.parametrize(
    ("used", "modalities", "index"),
    [
        (EVEN, BOTH, 1),
        (APART, BOTH, 0),
        (ONLY_VISION, BOTH, math.nan),
        ([[0, 0, 0], [0, 0, 0]], BOTH, math.nan),
        ([[4, 4, 4]], ("text",), math.nan),
        ([[4, 4, 4], [0, 0, 0], [9, 0, 9]], ("text", "image", "audio"), 2 / 3),  # no image
        ([[4, 4, 4, 4], [8, 8, 0, 0], [4, 0, 0, 4]], ("text", "image", "audio"), 1 / 4),
        ([[4, 4, 4, 4], [8, 8, 0, 0], [4, 0, 0, 4]], MODALITIES[:3], 3 / 4),  # image and video count as one
        ([[0, 0], [9, 0], [0, 9]], MODALITIES[:3], math.nan),
        ([[0, 0], [9, 0], [0, 9], [5, 1]], MODALITIES, 1 / 2),  # vision and audio
    ],
)
def test_modality_equity_of_plain_cases(used: list[list[int]], modalities: list[str], index: float) -> None:
    assert same(balance.modality_equity(np.array(used), modalities), index)


def test_any_use_counts_without_a_least_share() -> None:
    used_ME = np.array([[1, 0, 50, 20], [90, 90, 0, 1]])
    assert balance.modality_equity(used_ME, BOTH) == 0
    assert balance.modality_equity(used_ME, BOTH, least_share=0) == 0.5


@given(layers())
def test_text_among_the_most_loaded(used_ME: np.ndarray) -> None:
    experts = used_ME.shape[1]
    order = sorted(range(experts), key=lambda expert: (-int(used_ME[:, expert].sum()), expert))
    most_loaded = order[: max(1, experts // 4)]
    text = sum(int(used_ME[0, expert]) for expert in most_loaded)
    both = sum(int(used_ME[:, expert].sum()) for expert in most_loaded)
    assert same(balance.text_among_most_loaded(used_ME), text / both if both else math.nan)


@given(layers())
def test_idle_experts_and_text_shares(used_ME: np.ndarray) -> None:
    tokens_M = used_ME.sum(axis=1)
    for row, idle in zip(used_ME.tolist(), balance.idle_experts(used_ME, tokens_M), strict=True):
        assert same(idle, row.count(0) if any(row) else math.nan)
    for text, vision, share in zip(*used_ME.tolist(), balance.text_share(used_ME), strict=True):
        assert same(share, text / (text + vision) if text + vision else math.nan)


def test_a_modality_whose_tokens_use_no_expert_leaves_all_idle() -> None:
    used_ME, tokens_M = np.array([[3, 0, 1], [0, 0, 0]]), np.array([4, 9])
    assert balance.idle_experts(used_ME, tokens_M) == [1, 3]
    assert math.isnan(balance.variation(used_ME[1]))
    assert math.isnan(balance.modality_equity(used_ME, BOTH))


def test_equiroutes_sixteen_experts_have_four_most_loaded() -> None:
    used_ME = np.ones((2, 16), dtype=np.int64)
    used_ME[:, :4] = [[2] * 4, [8] * 4]
    assert same(balance.text_among_most_loaded(used_ME), 0.2)
