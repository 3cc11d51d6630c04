"""Steps of one layer that are counted later: op by op, counting many takes no longer than counting one."""

import torch
from torch import Tensor

from prismoe.kernels.expert_load import Confidence, count_expert_load

KEPT_TOKENS = 512


class KeptSteps:
    """Steps whose load is yet to be added to `load_MC`, for an eager engine on CPU."""

    def __init__(self, load_MC: Tensor) -> None:
        self._load_MC = load_MC
        self.forget()

    def keep(
        self,
        experts_TA: Tensor,
        count_T: Tensor,
        tail_T: Tensor,
        segment_T: Tensor,
        confidence: Confidence | None,
    ) -> None:
        """Keep a step, of which only `segment_T` may change later. From KEPT_TOKENS on, all are counted."""
        self._steps.append((experts_TA, count_T, tail_T, segment_T.clone(), *(confidence or ())))
        self._tokens += len(count_T)
        if self._tokens >= KEPT_TOKENS:
            self.count()

    def count(self) -> None:
        """Add what was kept to the load."""
        if self._steps:
            experts_TA, count_T, tail_T, segment_T, *rest = map(torch.cat, zip(*self._steps, strict=True))
            confidence = Confidence(*rest) if rest else None
            count_expert_load(self._load_MC, experts_TA, count_T, tail_T, segment_T, confidence)
            self.forget()

    def forget(self) -> None:
        """Drop what was kept."""
        self._steps: list[tuple[Tensor, ...]] = []
        self._tokens = 0
