"""The intervals compared with published values, and with their limits."""

import numpy as np
import pytest

from prismoe.model_plugins.tools.evaluate.intervals import paired_bootstrap, wilson


@pytest.mark.parametrize(
    ("right", "questions", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 1 - 0.1170, 1.0),
    ],
)
def test_wilsons_are_newcombes(right: int, questions: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I. The last is from 1 / (1 + Z² / n)."""
    assert wilson(right, questions) == pytest.approx((low, high), abs=5e-5)


def outcomes(both: int, won: int, lost: int, neither: int) -> tuple[list[bool], list[bool]]:
    """The right answers of two runs, with these numbers of questions for each outcome."""
    right = [True] * both + [True] * won + [False] * (lost + neither)
    first = [True] * both + [False] * won + [True] * lost + [False] * neither
    return right, first


def test_with_one_question_for_each_picture_it_is_close_to_the_normal_interval() -> None:
    right, first = outcomes(700, 60, 40, 200)
    low, high = paired_bootstrap(right, first, range(1000))
    margin = 1.96 * np.sqrt(60 + 40 - (60 - 40) ** 2 / 1000) / 1000  # McNemar's variance of the difference
    assert (low, high) == pytest.approx((0.02 - margin, 0.02 + margin), abs=0.0015)


def test_questions_about_one_picture_count_as_one() -> None:
    """Ten questions about a picture that win or lose together count no more than one."""
    right, first = outcomes(70, 6, 4, 20)
    once = paired_bootstrap(right, first, range(100))
    pictures = [picture for picture in range(100) for _ in range(10)]
    tenfold = [[one for one in run for _ in range(10)] for run in (right, first)]
    assert paired_bootstrap(tenfold[0], tenfold[1], pictures) == pytest.approx(once)
    apart = paired_bootstrap(tenfold[0], tenfold[1], range(1000))
    assert apart.high - apart.low < (once.high - once.low) / 2.5


def test_paired_answers_narrow_it() -> None:
    """Two runs that are right on the same questions don't differ, however few questions these are."""
    right, first = outcomes(50, 0, 0, 50)
    assert paired_bootstrap(right, first, range(100)) == (0, 0)
    assert paired_bootstrap(right, first[::-1], range(100)).low < -0.1


def test_pictures_with_unequal_numbers_of_questions() -> None:
    """A draw's difference is over its questions: here those of one of two pictures, or of both."""
    low, high = paired_bootstrap([True, False, False, False], [False] * 4, ["a", "b", "b", "b"])
    assert (low, high) == (0, 1)
    assert paired_bootstrap([True] * 4, [False] * 4, ["a", "b", "b", "b"]) == (1, 1)
