"""Errors of means over questions that share drawings."""

import math

import numpy as np
import pytest

from prismoe.training.intervals import Clusters


def test_an_error_takes_drawings_as_independent() -> None:
    values = [float(drawing % 2) for drawing in range(5) for _ in range(3)]  # a drawing's questions alike
    mean = Clusters([(drawing,) for drawing in range(5) for _ in range(3)]).mean(values)
    assert mean.value == pytest.approx(0.4)
    assert mean.error == pytest.approx(np.array([0, 1, 0, 1, 0]).std(ddof=1) / math.sqrt(5))


def test_questions_that_share_one_of_their_drawings_are_dependent() -> None:
    values = [1.0, 1.0, 0.0, 0.0]
    apart = Clusters([(0,), (1,), (2,), (3,)]).mean(values)
    chained = Clusters([(0, 9), (1, 9), (2, 8), (3, 8)]).mean(values)
    assert chained.error > apart.error == pytest.approx(0.5 / math.sqrt(3))
    assert chained.error == pytest.approx(math.sqrt(0.125 * 6 / 5))


def test_opposite_questions_of_a_drawing_hide_no_error() -> None:
    """Deviations that cancel in every cluster leave the error of independent questions."""
    assert Clusters([(0,), (0,), (1,), (1,)]).mean([0.0, 1.0, 0.0, 1.0]).error > 0.2


@pytest.mark.parametrize("drawings", [40, 120])
def test_the_error_is_the_spread_of_the_mean(drawings: int) -> None:
    """Of many exams: each question is about two drawings, and right if both are easy."""
    draw = np.random.default_rng(0)
    pairs = [tuple(draw.choice(drawings, 2, replace=False)) for _ in range(4 * drawings)]
    clusters = Clusters(pairs)
    means, errors = [], []
    for _ in range(400):
        ease = draw.normal(size=drawings)
        mean = clusters.mean([float(ease[a] + ease[b] > 0) for a, b in pairs])
        means.append(mean.value)
        errors.append(mean.error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.2)
