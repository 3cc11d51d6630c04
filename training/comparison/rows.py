"""The rows of the comparison: a router's runs together, and how sure their means are."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prismoe.training.comparison.contenders import BASELINE, ROUTERS, Calibrated, runs
from prismoe.training.comparison.measured import ContenderScores, TrainingFigures
from prismoe.training.data.cases import Case
from prismoe.training.intervals import Clusters, Mean


@dataclass(frozen=True)
class Run:
    """One run. A calibrated router has no training."""

    scores: ContenderScores
    training: TrainingFigures | None


@dataclass(frozen=True)
class Row:
    """A router's runs, the first seed's first."""

    name: str
    runs: list[Run]

    @property
    def label(self) -> str:
        """As the table has it. A star marks a calibrated router."""
        return f"`{self.name}`{'*' if isinstance(ROUTERS[self.name], Calibrated) else ''}"

    def mean(self, of: Callable[[ContenderScores], float]) -> float:
        """A figure's mean over the runs."""
        return statistics.fmean(of(run.scores) for run in self.runs)

    @property
    def step_seconds(self) -> float | None:
        """The median training step's, a mean over the runs."""
        seconds = [run.training.step_seconds for run in self.runs if run.training]
        return statistics.fmean(seconds) if seconds else None


def rows_of(found: Mapping[str, Run]) -> dict[str, Row]:
    """The rows of which all runs are there."""
    rows = {}
    for name in ROUTERS:
        own = [found[run] for run in runs(name) if run in found]
        if len(own) == len(runs(name)):
            rows[name] = Row(name, own)
    return rows


class Accuracies:
    """Shares of right answers to some of an exam's questions, of all rows, with standard errors.

    An error has two parts. One is the drawings': questions are dependent where they share one. The other is
    the seed's: the variance between runs of a router, pooled over the rows with several, over a row's number
    of runs.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        rows: Mapping[str, Row],
        right: Callable[[ContenderScores], Sequence[bool]],
        is_counted: Callable[[Case], bool] = lambda _: True,
    ) -> None:
        chosen = [number for number, case in enumerate(cases) if is_counted(case)]
        self.questions = len(chosen)
        self.rows = rows
        self.clusters = Clusters([cases[number].drawings for number in chosen])
        self.right_RQ = {
            name: np.array([right(run.scores) for run in row.runs], dtype=np.float64)[:, chosen]
            for name, row in rows.items()
        }
        self.seed_variance = _pooled_variance([right_RQ.mean(axis=1) for right_RQ in self.right_RQ.values()])

    def share(self, name: str) -> Mean:
        """A row's share of right answers."""
        right_RQ = self.right_RQ[name]
        return self._with_seeds(right_RQ.mean(axis=0), self.seed_variance / len(right_RQ))

    def difference(self, name: str) -> Mean:
        """How much more a row gets right than the baseline, question by question."""
        own_RQ, baseline_RQ = self.right_RQ[name], self.right_RQ[BASELINE]
        off_Q = own_RQ.mean(axis=0) - baseline_RQ.mean(axis=0)
        return self._with_seeds(off_Q, self.seed_variance * (1 / len(own_RQ) + 1 / len(baseline_RQ)))

    def _with_seeds(self, value_Q: NDArray[np.float64], variance: float) -> Mean:
        mean = self.clusters.mean(value_Q.tolist())
        return Mean(mean.value, math.hypot(mean.error, math.sqrt(variance)))


def _pooled_variance(groups: Sequence[NDArray[np.float64]]) -> float:
    """The variance within groups; 0 where none has two values."""
    freedom = sum(len(group) - 1 for group in groups)
    return sum(float(group.var()) * len(group) for group in groups) / freedom if freedom else 0.0
