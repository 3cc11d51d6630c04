"""Steps of one layer that are counted later: op by op, counting many takes no longer than counting one."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prismoe.kernels.expert_load import Confidence, count_expert_load, experts_of

KEPT_PAIRS = 2**17
"""Kept tokens of one kind, times the layer's experts: what keeping takes of memory."""
WAITING_TOKENS, WAITING_STEPS = 1024, 256
"""Steps wait until they have as many tokens, or are as many; then they are copied at once."""

PARTS = "experts_TA", "count_T", "tail_T", "segment_T", "logits_TE", "scores_TE"
"""What `count_expert_load` takes of a step, with a row for each token: all but the experts may be unknown."""
UNSURE = None, None
"""The logits and scores of a step without confidence."""


class PendingSteps:
    """Steps whose load is yet to be added to `load_MC`, for an eager engine on CPU.

    To hold on to a large step's tensors costs the model more than to copy them, since the next step's then
    lie where nothing is cached. Copying a small step costs more than to hold on to it.
    """

    def __init__(self, load_MC: Tensor) -> None:
        self._load_MC = load_MC
        self._most_tokens = KEPT_PAIRS // experts_of(load_MC)
        self.forget()

    def keep(
        self,
        experts_TA: Tensor,
        count_T: Tensor | None,
        tail_T: Tensor | None,
        segment_T: Tensor | None,
        confidence: Confidence | None,
    ) -> None:
        """Keep a step, whose tensors must not change later. When there are many, those are counted."""
        self._waiting.append((experts_TA, count_T, tail_T, segment_T, *(confidence or UNSURE)))
        self._waiting_tokens += len(experts_TA)
        if self._waiting_tokens >= WAITING_TOKENS or len(self._waiting) >= WAITING_STEPS:
            self._copy()

    def count(self) -> None:
        """Add what was kept to the load."""
        self._copy()
        for page in self._pages.values():
            self._count(page.take())

    def forget(self) -> None:
        """Drop what was kept."""
        self._pages: dict[tuple[object, ...], Page] = {}
        self._waiting: list[tuple[Tensor | None, ...]] = []
        self._waiting_tokens = 0

    def _copy(self) -> None:
        steps_of_kind = defaultdict(list)
        for step in self._waiting:
            known = {name: part for name, part in zip(PARTS, step, strict=True) if part is not None}
            steps_of_kind[(*known, known["experts_TA"].shape[1])].append(known)
        self._waiting, self._waiting_tokens = [], 0
        for kind, steps in steps_of_kind.items():
            parts = steps[0] if len(steps) == 1 else _joined(steps)
            tokens = len(parts["experts_TA"])
            if kind not in self._pages:
                self._pages[kind] = Page(parts, self._most_tokens)
            page = self._pages[kind]
            if page.tokens + tokens > self._most_tokens:
                self._count(page.take())
            if tokens > self._most_tokens:
                self._count(parts)
            else:
                page.append(parts, tokens)

    def _count(self, parts: Mapping[str, Tensor]) -> None:
        logits_TE = parts.get("logits_TE")
        count_expert_load(
            self._load_MC,
            parts["experts_TA"],
            parts.get("count_T"),
            parts.get("tail_T"),
            parts.get("segment_T"),
            None if logits_TE is None else Confidence(logits_TE, parts.get("scores_TE")),
        )


class Page:
    """Room for the tokens of many steps that know the same, in memory side by side, as counting likes it."""

    def __init__(self, parts: Mapping[str, Tensor], most_tokens: int) -> None:
        self.tokens = 0
        self._columns = {
            name: torch.empty(*part.shape[1:], most_tokens, dtype=part.dtype).numpy()
            for name, part in parts.items()
        }

    def append(self, parts: Mapping[str, Tensor], tokens: int) -> None:
        """Copy a step behind the others."""
        for name, part in parts.items():  # torch is slow to transpose few columns
            self._columns[name][..., self.tokens : self.tokens + tokens] = part.numpy().T
        self.tokens += tokens

    def take(self) -> Mapping[str, Tensor]:
        """What was copied, as if of one step. It is good until the next is appended."""
        tokens, self.tokens = self.tokens, 0
        return {name: torch.from_numpy(columns[..., :tokens].T) for name, columns in self._columns.items()}


def _joined(steps: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    return {name: torch.cat([step[name] for step in steps]) for name in steps[0]}
