"""Computes 95% intervals of a share, and of the difference of two shares over the same questions."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

Z = 1.959964
"""The standard deviations around a normal distribution's mean that hold 95% of it."""
DRAWS = 10_000
SEED = 0


class Interval(NamedTuple):
    """The bounds of an interval, as shares: 0.5 is a half."""

    low: float
    high: float


def wilson(right: int, questions: int) -> Interval:
    """Wilson's score interval (Wilson 1927; Newcombe 1998, method 3), as if questions were independent."""
    share, spread = right / questions, Z**2 / questions
    middle = share + spread / 2
    margin = Z * math.sqrt(share * (1 - share) / questions + spread / (4 * questions))
    return Interval((middle - margin) / (1 + spread), (middle + margin) / (1 + spread))


def paired_bootstrap(right: Sequence[bool], first: Sequence[bool], pictures: Sequence[Hashable]) -> Interval:
    """The interval of the gain in right questions over the first run, as a share of all questions.

    It is the percentile bootstrap (Efron 1979) over pictures: questions about the same picture are drawn
    together, since their answers depend on each other, and so are both runs' answers to a question. The same
    input gives the same interval. Where the runs agree on every question it is 0 to 0, which no number of
    draws can widen.
    """
    numbers = {picture: number for number, picture in enumerate(dict.fromkeys(pictures))}
    picture_Q = np.array([numbers[picture] for picture in pictures])
    more_Q = np.array(right, dtype=float) - np.array(first, dtype=float)
    count_P = np.bincount(picture_Q)
    more_P = np.bincount(picture_Q, weights=more_Q)
    generator = np.random.default_rng(SEED)
    differences = np.empty(DRAWS)
    for draw in range(DRAWS):
        drawn = generator.integers(len(count_P), size=len(count_P))
        differences[draw] = more_P[drawn].sum() / count_P[drawn].sum()
    low, high = np.quantile(differences, (0.025, 0.975))
    return Interval(float(low), float(high))
