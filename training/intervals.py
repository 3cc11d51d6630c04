"""Means with standard errors, of questions that share drawings.

Shape legend: Q questions, D drawings.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

INTERVAL = 1.96
"""Standard errors to either side of a 95% interval."""


class Mean(NamedTuple):
    """A mean and its standard error."""

    value: float
    error: float


def clustered_mean(clusters: Sequence[Sequence[int]], values: Sequence[float]) -> Mean:
    """The questions' mean. Its error takes questions as dependent where they share a drawing.

    `clusters` are each question's drawings. The variance is the sum of the products of the deviations of all
    pairs of questions that share one (Aronow, Samii & Assenova 2015), or that of independent questions where
    that is more. Of questions about one drawing each it is the usual error by clusters.
    """
    number = {drawing: position for position, drawing in enumerate(sorted({d for c in clusters for d in c}))}
    shows_QD = np.zeros((len(values), len(number)), dtype=np.float32)
    for row, drawings in enumerate(clusters):
        shows_QD[row, [number[drawing] for drawing in drawings]] = 1
    value_Q = np.asarray(values, dtype=np.float64)
    off_Q = value_Q - value_Q.mean()
    shared = off_Q @ ((shows_QD @ shows_QD.T > 0) @ off_Q)
    variance = max(float(shared), float(off_Q @ off_Q)) * len(number) / max(len(number) - 1, 1)
    return Mean(float(value_Q.mean()), math.sqrt(variance) / len(values))
