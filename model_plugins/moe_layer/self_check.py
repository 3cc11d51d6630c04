"""The self-check at the start: a made-up step is routed and counted, and its sums are compared.

Before the first request it finds a layer whose router is never asked (a kernel that routes by itself, a graph
that was compiled without prismoe), a layer that tells a part of its rows, and a step that is counted twice.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from prismoe.model_plugins.moe_layer.model_routing import ModelRouting
from prismoe.model_plugins.moe_layer.step import MarkedTokens, Media

REQUESTS = 5
"""How many decoding requests the made-up step has: no number that graphs are captured for."""


class LayerSums(NamedTuple):
    """Over the tokens of a step: how many experts a layer uses, by each who should know."""

    layer: int
    used: int  # as many as the tokens' counts say: tokens · k, or fewer where a policy skips
    told: int  # by the layer's router
    counted: int


class FoundWrong(NamedTuple):
    """What the self-check found, as a sentence."""

    tokens: int
    sums: LayerSums

    def __str__(self) -> str:
        layer, used, told, counted = self.sums
        return (
            f"The self-check at the start found layer {layer} miscounted: of a made-up step of {self.tokens} "
            f"tokens, which use {used} experts there, its router told {told} and the counter has {counted}."
        )


def check_counts(routing: ModelRouting, num_tokens: int, take_step: Callable[[], None]) -> FoundWrong | None:
    """Route a made-up step of `num_tokens` tokens of all modalities, which `take_step` takes, and count it.

    Returns the first layer whose sums differ; None where all are right. What was counted is forgotten.
    """
    routing.reset_load()
    for each in routing.counted():
        each.step.forget_rows()
    _mark(routing.step.tokens, num_tokens)
    routing.begin_made_up_step(num_tokens)
    take_step()
    told = [each.step.experts_told() for each in routing.counted()]
    routing.end_step()
    found = [
        sums
        for each, (used_L, told_L) in zip(routing.counted(), told, strict=True)
        for sums in map(LayerSums, each.layers, used_L, told_L, _counted(each))
    ]
    routing.reset_load()
    wrong = (sums for sums in found if not sums.used == sums.told == sums.counted)
    return next((FoundWrong(num_tokens, sums) for sums in wrong), None)


def _mark(tokens: MarkedTokens, num_tokens: int) -> None:
    """The last tokens are text, and one before them is of each other modality, if so many fit."""
    media = [Media(name, 1) for name in tokens.names[1:num_tokens]]
    tokens.mark(torch.arange(num_tokens) < len(media), media, num_tokens)


def _counted(routing: ModelRouting) -> Sequence[int]:
    """By layer, over all modalities and experts."""
    return [sum(map(sum, experts_ME)) for experts_ME in routing.counter.load()["expert_tokens"]]
