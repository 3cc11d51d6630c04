"""Steps of one layer that are counted later: op by op, counting many takes no longer than counting one."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from prismoe.kernels.expert_load import Confidence, count_expert_load, experts_of

KEPT_PAIRS = 2**16
"""Kept tokens, times the layer's experts: what keeping takes of memory."""
KEPT_STEPS = 256
"""All layers count in the same step, which must not take long."""


class Step(NamedTuple):
    """What `count_expert_load` takes of a step."""

    experts_TA: Tensor
    count_T: Tensor | None
    tail_T: Tensor | None
    segment_T: Tensor
    confidence: Confidence | None


class KeptSteps:
    """Steps whose load is yet to be added to `load_MC`, for an eager engine on CPU."""

    def __init__(self, load_MC: Tensor) -> None:
        self._load_MC = load_MC
        self._most_tokens = KEPT_PAIRS // experts_of(load_MC)
        self.forget()

    def keep(
        self,
        experts_TA: Tensor,
        count_T: Tensor | None,
        tail_T: Tensor | None,
        segment_T: Tensor,
        confidence: Confidence | None,
    ) -> None:
        """Keep a step, whose tensors must not change later. When there are many, all are counted."""
        self._steps.append(Step(experts_TA, count_T, tail_T, segment_T, confidence))
        self._tokens += len(experts_TA)
        if self._tokens >= self._most_tokens or len(self._steps) >= KEPT_STEPS:
            self.count()

    def count(self) -> None:
        """Add what was kept to the load."""
        for _, steps in groupby(sorted(self._steps, key=_kind), _kind):
            experts, counts, tails, segments, confidences = zip(*steps, strict=True)
            known = [confidence for confidence in confidences if confidence is not None]
            count_expert_load(
                self._load_MC,
                _joined(experts),
                _joined_if_known(counts),
                _joined_if_known(tails),
                _joined(segments),
                _joined_confidence(known) if known else None,
            )
        self.forget()

    def forget(self) -> None:
        """Drop what was kept."""
        self._steps: list[Step] = []
        self._tokens = 0


def _kind(step: Step) -> tuple[int, ...]:
    """Steps of one kind can be counted together."""
    scores_TE = None if step.confidence is None else step.confidence.scores_TE
    parts = step.count_T, step.tail_T, step.confidence, scores_TE
    return step.experts_TA.shape[1], *(part is None for part in parts)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """All tokens of the parts, in memory side by side, as they are counted fastest."""
    return torch.cat([part.t() for part in parts], dim=-1).t()


def _joined_if_known(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return _joined(known) if known else None


def _joined_confidence(parts: Sequence[Confidence]) -> Confidence:
    return Confidence(
        _joined([part.logits_TE for part in parts]), _joined_if_known([part.scores_TE for part in parts])
    )
