"""Ranks are exact while all values are kept, and later within the bound that a sketch states."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismoe.model_plugins.tools.calibrate.fits import ltdr
from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData, RoutedLayer
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal
from prismoe.model_plugins.tools.calibrate.fits.sketch import QuantileSketch, merged


def sketch_of(values: np.ndarray, capacity: int, pieces: int = 7) -> QuantileSketch:
    sketch = QuantileSketch(capacity)
    for piece in np.array_split(values, pieces):
        sketch.add(torch.from_numpy(piece))
    return sketch


@settings(deadline=None)  # torch's first calls take long
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.floats(0, 1))
def test_a_few_values_are_kept_unchanged(values: list[float], share: float) -> None:
    sketch = sketch_of(np.array(values, dtype=np.float32), 60)
    ranked = sketch.ranked()
    assert (sketch.rank_error, ranked.count) == (0, len(values))
    assert [ranked.at(rank) for rank in range(len(values))] == sorted(values)
    assert ranked.quantile(share) == pytest.approx(np.quantile(np.array(values), share), abs=1e-12)
    assert ranked.mean(ranked.values_N) == pytest.approx(np.mean(np.array(values)), abs=1e-12)


@pytest.mark.parametrize("order", ["drawn", "rising", "falling", "equal"])
@pytest.mark.parametrize("count", [65, 1000, 54_321])
def test_ranks_of_many_values_are_right_within_the_bound(order: str, count: int) -> None:
    drawn = np.random.default_rng(3).random(count, dtype=np.float32)
    ways = {"drawn": drawn, "rising": np.sort(drawn), "falling": np.sort(drawn)[::-1].copy()}
    values = ways.get(order, np.full(count, 0.5, dtype=np.float32))
    sketch = sketch_of(values, 64)
    ranked, in_order = sketch.ranked(), np.sort(values)
    levels = np.ceil(np.log2(count / 64))
    assert 0 < sketch.rank_error < count * levels / 64 * 1.1
    assert ranked.count == sketch.count == count
    assert len(ranked.values_N) <= 64 * (levels + 1)
    for rank in range(0, count, 1 + count // 97):
        found = ranked.at(rank)
        first, behind = np.searchsorted(in_order, found), np.searchsorted(in_order, found, "right")
        assert first - sketch.rank_error <= rank < behind + sketch.rank_error


def test_odd_and_even_places_are_promoted_in_turns() -> None:
    """Otherwise each level would raise all values a little."""
    values_N, times_N = sketch_of(np.arange(16, dtype=np.float32), 4, pieces=1).weighted()
    # 1, 3, 5, 7 and then 8, 10, 12, 14 were promoted to level 1; of these, the odd places to level 2.
    assert (values_N.tolist(), times_N.tolist()) == ([3, 7, 10, 14], [4] * 4)


def test_a_sketch_continues_from_its_arrays() -> None:
    values = np.random.default_rng(5).random(100_000, dtype=np.float32)
    whole, half = QuantileSketch(), QuantileSketch()
    whole.add(torch.from_numpy(values[:60_000]))
    half.add(torch.from_numpy(values[:60_000]))
    read = QuantileSketch.from_arrays(half.arrays())
    for sketch in (whole, read):
        sketch.add(torch.from_numpy(values[60_000:]))
    assert whole.rank_error > 0
    assert {name: kept.tolist() for name, kept in read.arrays().items()} == {
        name: kept.tolist() for name, kept in whole.arrays().items()
    }


def test_sketches_are_merged_by_their_factors() -> None:
    first, second = (sketch_of(np.array(values, dtype=np.float32), 8) for values in ([1, 2], [3]))
    ranked = merged([first, second], [2.0, 0.5])
    assert [ranked.at(rank) for rank in range(3)] == [1.5, 2.0, 4.0]
    with pytest.raises(ValueError, match="no tokens of one of the modalities"):
        merged([QuantileSketch()])


@pytest.mark.parametrize("share", [0.1, 0.25, 0.9])
def test_a_threshold_is_within_the_bound_of_a_float64_reference(share: float) -> None:
    """The RPV of random gates with 12 experts. There are more values than a sketch keeps."""
    logits = np.random.default_rng(1).standard_normal((5000, 12))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    variance = np.sort(probs.var(axis=1))
    seen = RoutedLayer(12, sketches={name: QuantileSketch(256) for name in ("text", "vision")})
    shuffled = np.random.default_rng(2).permutation(variance).astype(np.float32)
    segment_T = torch.zeros(1000, dtype=torch.int64)
    for request in np.split(shuffled, 5):
        seen.add("variance", torch.from_numpy(request)[:, None], segment_T, kept=1)
    data = CalibrationData({4: seen}, 2)
    threshold = ltdr.fit(data, Goal(tail_share=share)).layers[4]["threshold"]
    bound = seen.sketches["vision"].rank_error
    assert 0 < bound / 5000 == data.rank_error < 5000 * 5 / 256 / 5000
    assert abs(int((variance > threshold).sum()) - share * 5000) <= bound + 1
