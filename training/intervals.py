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


class Clusters:
    """Questions that are dependent where they share a drawing."""

    def __init__(self, drawings: Sequence[Sequence[int]]) -> None:
        """`drawings` are those that each question's picture shows."""
        number = {drawing: at for at, drawing in enumerate(sorted({d for shown in drawings for d in shown}))}
        shows_QD = np.zeros((len(drawings), len(number)), dtype=np.float32)
        for row, shown in enumerate(drawings):
            shows_QD[row, [number[drawing] for drawing in shown]] = 1
        self.shared_QQ = (shows_QD @ shows_QD.T > 0).astype(np.float32)
        self.correction = len(number) / max(len(number) - 1, 1)

    def mean(self, values: Sequence[float]) -> Mean:
        """The questions' mean.

        Its variance is the sum of the products of the deviations of all pairs of questions that share a
        drawing (Aronow, Samii & Assenova 2015), or that of independent questions where that is more. Of
        questions about one drawing each it is the usual error by clusters.
        """
        value_Q = np.asarray(values, dtype=np.float64)
        off_Q = value_Q - value_Q.mean()
        shared = float(off_Q @ (self.shared_QQ @ off_Q.astype(np.float32)))
        variance = max(shared, float(off_Q @ off_Q)) * self.correction
        return Mean(float(value_Q.mean()), math.sqrt(variance) / len(values))
