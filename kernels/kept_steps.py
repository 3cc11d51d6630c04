"""Steps of one layer that are counted later: op by op, counting many takes no longer than counting one."""

import torch
from torch import Tensor

from prismoe.kernels.expert_load import Confidence, count_expert_load

KEPT_TOKENS = 2048


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
        """Keep a step, of which only `segment_T` may change later. From KEPT_TOKENS on, all are counted."""
        kind = experts_TA.shape[1], count_T is None, tail_T is None, confidence is None
        if kind != self._kind:  # just steps of one kind can be counted together
            self.count()
            self._kind = kind
        self._steps.append((experts_TA, count_T, tail_T, segment_T.clone(), *(confidence or (None, None))))
        self._tokens += experts_TA.shape[0]
        if self._tokens >= KEPT_TOKENS:
            self.count()

    def count(self) -> None:
        """Add what was kept to the load."""
        if self._steps:
            experts_TA, count_T, tail_T, segment_T, *confidence = map(_joined, zip(*self._steps, strict=True))
            sure = None if confidence[0] is None else Confidence(*confidence)
            count_expert_load(self._load_MC, experts_TA, count_T, tail_T, segment_T, sure)
            self.forget()

    def forget(self) -> None:
        """Drop what was kept."""
        self._steps: list[tuple[Tensor | None, ...]] = []
        self._tokens = 0
        self._kind: tuple[int, bool, bool, bool] | None = None


def _joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    return None if parts[0] is None else torch.cat(parts)
