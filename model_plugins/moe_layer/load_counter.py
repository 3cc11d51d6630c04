"""Counts the steps of all MoE layers together, many steps at a time.

Each step is copied into a page, and a full page is counted: counting a small step by itself would take ten
times as long.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from prismoe.kernels.expert_load import (
    LayerLoad,
    RoutedTokens,
    ScoredTokens,
    count_confidence,
    count_routed,
    empty_load,
)
from prismoe.model_plugins.moe_layer.step import RoutingStep

PAGE_TOKENS = 1024
PAGE_STEPS = 4
"""The number of steps whose scored tokens fit into a page, if each step has as many as possible."""

Rows = TypeVar("Rows", RoutedTokens, ScoredTokens)


class Page(Generic[Rows]):
    """Holds the tokens of many steps, side by side; allocated with the first step, on its device.

    For the fields named in `constant`, the first token's values count for all tokens.
    """

    def __init__(self, most_tokens: int, constant: Collection[str]) -> None:
        self._most_tokens, self._constant = most_tokens, constant
        self._tokens = 0
        self._rows: Rows | None = None

    def has_room(self, tokens: int) -> bool:
        """Whether `tokens` more tokens fit."""
        return self._tokens + tokens <= self._most_tokens

    def append(self, rows: Rows, tokens: int) -> None:
        """Copy a step after the others."""
        if self._rows is None:
            self._rows = type(rows)(*map(self._room, rows._fields, rows))
        for name, room, part in zip(rows._fields, self._rows, rows, strict=True):
            if name not in self._constant:
                room.narrow(_token_dim(part), self._tokens, tokens).copy_(part)
        self._tokens += tokens

    def take(self) -> Rows | None:
        """Empty the page and return what it held, if anything; valid until the next step is appended."""
        tokens, self._tokens = self._tokens, 0
        if self._rows is None or tokens == 0:
            return None
        return type(self._rows)(*(room.narrow(_token_dim(room), 0, tokens) for room in self._rows))

    def _room(self, name: str, part: Tensor) -> Tensor:
        dim: int = _token_dim(part)
        size = (*part.shape[:dim], self._most_tokens, *part.shape[dim + 1 :])
        return part.narrow(dim, 0, 1).expand(size) if name in self._constant else part.new_empty(size)


def _token_dim(part: Tensor) -> int:
    """The dimension of the tokens: the first of `[T]`, the second of `[L, T, ...]`."""
    return min(1, part.ndim - 1)


class LoadCounter(nn.Module):
    """Counts what a model's tokens use, since the start or since `reset`."""

    load_LMC: Tensor

    def __init__(self, step: RoutingStep) -> None:
        super().__init__()
        self._layers, self._modalities = step.layers, step.tokens.names
        experts = max((layer.experts for layer in step.layers), default=0)
        load_LMC = empty_load(len(step.layers), len(step.tokens.names), experts)
        self.register_buffer("load_LMC", load_LMC.to(step.tokens.segments.device), persistent=False)
        self.as_scored: Callable[[ScoredTokens], ScoredTokens] = lambda scored: scored
        """Turns what the layers wrote into what is counted."""
        constant = step.constant()
        self._routed = Page[RoutedTokens](max(PAGE_TOKENS, len(step.tokens.segments)), constant)
        self._scored = Page[ScoredTokens](PAGE_STEPS * len(step.tokens.sampled), constant)

    def add(self, step: RoutingStep) -> None:
        """Add a step that has run."""
        if not self._routed.has_room(step.tokens.num_tokens):
            self._count_routed()
        self._routed.append(step.routed(), step.tokens.num_tokens)
        if not self._scored.has_room(step.tokens.num_sampled):
            self._count_scored()
        self._scored.append(step.scored(), step.tokens.num_sampled)

    def load(self) -> Mapping[str, Any]:
        """The counts: for each field of `LayerLoad` a list by layer."""
        self._count_routed()
        self._count_scored()
        loads = [
            LayerLoad.read(load_MC, layer, self._modalities)
            for load_MC, layer in zip(self.load_LMC.cpu(), self._layers, strict=True)
        ]
        return {name: [getattr(load, name) for load in loads] for name in LayerLoad._fields}

    def _count_routed(self) -> None:
        if (routed := self._routed.take()) is not None:
            count_routed(self.load_LMC, routed)

    def _count_scored(self) -> None:
        if (written := self._scored.take()) is not None:
            count_confidence(self.load_LMC, self.as_scored(written), self._layers)

    def reset(self) -> None:
        """Restart counting at zero."""
        self._routed.take()
        self._scored.take()
        self.load_LMC.zero_()
