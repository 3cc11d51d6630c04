"""The search along the frontier compared with all pairs of the grid, for tables that rise both ways."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismoe.model_plugins.tools.calibrate.fits.frontier import frontier

STEPS = st.integers(0, 3)  # small, so that there are many equal values


@st.composite
def rising_tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """The skipped share and the output's change by text's and vision's thresholds, and the share to skip."""
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    skipped, divergence = (
        np.array(draw(st.lists(STEPS, min_size=rows * columns, max_size=rows * columns)))
        .reshape(rows, columns)
        .cumsum(axis=0)
        .cumsum(axis=1)
        for _ in range(2)
    )
    return skipped, divergence, draw(st.integers(0, int(skipped.max()) + 1))


@given(rising_tables())
def test_the_best_on_the_frontier_is_the_best_of_all_pairs(
    tables: tuple[np.ndarray, np.ndarray, int],
) -> None:
    """Of equally good pairs, it is the first by text's threshold, then by vision's."""
    skipped, divergence, expected = tables
    asked: list[tuple[int, int]] = []

    def of(text: int, vision: int) -> int:
        asked.append((text, vision))
        return int(skipped[text, vision])

    on_frontier = frontier(skipped.shape[0], skipped.shape[1], of, expected)
    enough = [pair for pair in product(*map(range, skipped.shape)) if skipped[pair] >= expected]
    assert min(on_frontier, key=lambda pair: divergence[pair], default=None) == min(
        enough, key=lambda pair: divergence[pair], default=None
    )
    assert len(asked) <= sum(skipped.shape)


@given(rising_tables())
def test_no_pair_that_skips_enough_is_lower_in_both(tables: tuple[np.ndarray, np.ndarray, int]) -> None:
    skipped, _, expected = tables
    enough = [pair for pair in product(*map(range, skipped.shape)) if skipped[pair] >= expected]
    least = [
        pair
        for pair in enough
        if not any(other != pair and other[0] <= pair[0] and other[1] <= pair[1] for other in enough)
    ]
    assert frontier(skipped.shape[0], skipped.shape[1], lambda i, j: int(skipped[i, j]), expected) == least


@pytest.mark.parametrize(
    ("expected", "pairs"), [(0, [(0, 0)]), (3, [(0, 2), (1, 1), (2, 0)]), (6, [(2, 2)]), (7, [])]
)
def test_a_small_table(expected: int, pairs: list[tuple[int, int]]) -> None:
    skipped = [[0, 2, 3], [2, 3, 4], [3, 5, 6]]
    assert frontier(3, 3, lambda text, vision: skipped[text][vision], expected) == pairs
