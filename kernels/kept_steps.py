"""Steps of one layer that are counted later: op by op, counting many takes no longer than counting one."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prismoe.kernels.expert_load import Confidence, count_expert_load

KEPT_TOKENS = 2048


class Step(NamedTuple):
    """What `count_expert_load` takes of a step."""

    experts_TA: Tensor
    count_T: Tensor | None
    tail_T: Tensor | None
    segment_T: Tensor
    confidence: Confidence | None

    @property
    def kind(self) -> tuple[int, bool, bool, bool]:
        """Steps of one kind can be counted together."""
        return self.experts_TA.shape[1], self.count_T is None, self.tail_T is None, self.confidence is None


class KeptSteps:
    """Steps whose load is yet to be added to `load_MC`, for an eager engine on CPU."""

    def __init__(self, load_MC: Tensor) -> None:
        self._load_MC = load_MC
        self.forget()

    def keep(
        self,
        experts_TA: Tensor,
        count_T: Tensor | None,
        tail_T: Tensor | None,
        segment_T: Tensor,
        confidence: Confidence | None,
    ) -> None:
        """Keep a step, whose tensors must not change later. From KEPT_TOKENS on, all are counted."""
        step = Step(experts_TA, count_T, tail_T, segment_T, confidence)
        if self._steps and self._steps[-1].kind != step.kind:
            self.count()
        self._steps.append(step)
        self._tokens += len(segment_T)
        if self._tokens >= KEPT_TOKENS:
            self.count()

    def count(self) -> None:
        """Add what was kept to the load."""
        if self._steps:
            experts, counts, tails, segments, confidences = zip(*self._steps, strict=True)
            known = [confidence for confidence in confidences if confidence is not None]
            count_expert_load(
                self._load_MC,
                torch.cat(experts),
                _joined(counts),
                _joined(tails),
                torch.cat(segments),
                _joined_confidence(known) if known else None,
            )
            self.forget()

    def forget(self) -> None:
        """Drop what was kept."""
        self._steps: list[Step] = []
        self._tokens = 0


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


def _joined_confidence(parts: Sequence[Confidence]) -> Confidence:
    return Confidence(
        torch.cat([part.logits_TE for part in parts]), _joined([part.scores_TE for part in parts])
    )
