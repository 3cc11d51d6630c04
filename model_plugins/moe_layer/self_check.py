"""The self-check at the start: it routes and counts a made-up step, and compares the sums.

It finds, before the first request, a layer whose router is never called (a kernel that routes by itself, a
graph compiled without prismoe), a layer that writes only some of its rows, and a step that is counted twice.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from prismoe.model_plugins.moe_layer.model_routing import ModelRouting
from prismoe.model_plugins.moe_layer.step import MarkedTokens, Media

REQUESTS = 5
"""The number of decoding requests in the made-up step; CUDA graphs are captured for other numbers."""


class LayerSums(NamedTuple):
    """The number of experts that a step's tokens use in a layer, by three sources."""

    layer: int
    used: int  # the sum of the tokens' counts: tokens · k, or less where a policy skips experts
    written: int  # by the layer's router
    counted: int  # by the load counter


class FoundWrong(NamedTuple):
    """A layer's wrong sums. Its text is a sentence for the user."""

    tokens: int
    sums: LayerSums

    def __str__(self) -> str:
        layer, used, written, counted = self.sums
        return (
            f"The self-check at the start found wrong counts in layer {layer}: in a made-up step of "
            f"{self.tokens} tokens, which use {used} experts there, its router wrote {written} and the "
            f"counter has {counted}."
        )


def check_counts(routing: ModelRouting, num_tokens: int, take_step: Callable[[], None]) -> FoundWrong | None:
    """Count a made-up step of `num_tokens` tokens of all modalities, which `take_step` runs.

    Returns the first layer whose sums differ; None where all are equal. The counts are then reset.
    """
    routing.reset_load()
    for each in routing.counted():
        each.step.forget_rows()
    _mark(routing.step.tokens, num_tokens)
    routing.begin_made_up_step(num_tokens)
    take_step()
    experts = [each.step.experts_written() for each in routing.counted()]
    routing.end_step()
    found = [
        sums
        for each, (used_L, written_L) in zip(routing.counted(), experts, strict=True)
        for sums in map(LayerSums, each.layers, used_L, written_L, _counted(each))
    ]
    routing.reset_load()
    wrong = (sums for sums in found if not sums.used == sums.written == sums.counted)
    return next((FoundWrong(num_tokens, sums) for sums in wrong), None)


def _mark(tokens: MarkedTokens, num_tokens: int) -> None:
    """Mark one token of each other modality, if they fit, and all tokens after them as text."""
    media = [Media(name, 1) for name in tokens.names[1:num_tokens]]
    tokens.mark(torch.arange(num_tokens) < len(media), media, num_tokens)


def _counted(routing: ModelRouting) -> Sequence[int]:
    """The counted uses of experts by layer, summed over all modalities and experts."""
    return [sum(map(sum, experts_ME)) for experts_ME in routing.counter.load()["expert_tokens"]]
