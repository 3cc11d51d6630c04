"""Expert load: what the engine counts, by layer, modality and expert."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

MODALITIES = ("text", "vision")


class ExpertLoad(BaseModel):
    """Counts since the start, each list by MoE layer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: list[int]
    """The MoE layers' indices in the decoder."""
    expert_tokens: list[list[list[int]]]
    """By modality and expert: how many tokens used it."""
    tokens: list[list[int]]
    """By modality: how many tokens were routed."""
    tail_tokens: list[int]
    """How many vision tokens were tail tokens."""

    @classmethod
    def total(cls, loads: Sequence[Self]) -> Self:
        """What engines that share the requests counted together."""
        counts = {
            name: _sum([getattr(load, name) for load in loads])
            for name in ("expert_tokens", "tokens", "tail_tokens")
        }
        return cls(layers=loads[0].layers, **counts)


def _sum(counts: Sequence[Any]) -> Any:
    """The sum of nested lists of equal form, number by number."""
    if isinstance(counts[0], list):
        return [_sum(part) for part in zip(*counts, strict=True)]
    return sum(counts)
