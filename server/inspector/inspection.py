"""What an inspection tells: for each token of a request what it is, and per MoE layer where it went."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prismoe.kernels.modalities import MODALITIES
from prismoe.model_plugins.models.patch_grid import PatchGrid

TEXT, VISION = MODALITIES


class Model(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RecordedLayer(Model):
    """What one MoE layer did with the tokens, each list by token."""

    layer: int
    """Its index in the decoder."""
    experts: list[list[int]]
    """The experts that a token used, best first."""
    weights: list[list[float]]
    """As many routing weights."""
    tail: list[bool]
    """Whether it was a vision tail token in this layer."""
    router_logits: list[list[float]] | None
    """The gate's logits, where the request asks for them."""


class RecordedRows(Model):
    """What the worker recorded, each list by token in the order of their positions."""

    positions: list[int]
    is_vision: list[bool]
    layers: list[RecordedLayer]


class InspectedToken(Model):
    """What a token is. `segment` is its image's number in the request; row and column are its patch's."""

    position: int
    modality: str
    text: str | None
    segment: int | None = None
    row: int | None = None
    column: int | None = None


class Inspection(Model):
    """A request's tokens and where they went. Lists of `layers` follow `tokens`."""

    grid: PatchGrid
    """How an image's tokens lie on it."""
    prompt_tokens: int
    """How many of the tokens are the prompt's; the others are the answer's."""
    tokens: list[InspectedToken]
    layers: list[RecordedLayer]
    left_out: int = Field(description="How many tokens went beyond the limit and were not recorded.")


def inspection(
    rows: RecordedRows,
    grid: PatchGrid,
    prompt: Sequence[int],
    answer: Sequence[int],
    text_of: Callable[[int], str],
) -> Inspection:
    """The recorded rows of a request with these tokens."""
    # The answer's last token is never fed back; a scheduler that runs ahead computes it all the same.
    fed = [*prompt, *answer][: len(prompt) + len(answer) - 1]
    count = sum(position < len(fed) for position in rows.positions)
    tokens = list(_tokens(rows.positions[:count], rows.is_vision[:count], grid, fed, text_of))
    return Inspection(
        grid=grid,
        prompt_tokens=min(len(prompt), count),
        tokens=tokens,
        layers=[_first(layer, count) for layer in rows.layers],
        left_out=len(fed) - count,
    )


def _tokens(
    positions: Sequence[int],
    is_vision: Sequence[bool],
    grid: PatchGrid,
    fed: Sequence[int],
    text_of: Callable[[int], str],
) -> Iterator[InspectedToken]:
    vision_tokens = 0
    for position, vision in zip(positions, is_vision, strict=True):
        if not vision:
            yield InspectedToken(position=position, modality=TEXT, text=text_of(fed[position]))
            continue
        segment, token = divmod(vision_tokens, grid.tokens)
        vision_tokens += 1
        row, column = grid.place(token) or (None, None)
        yield InspectedToken(
            position=position, modality=VISION, text=None, segment=segment, row=row, column=column
        )


def _first(layer: RecordedLayer, count: int) -> RecordedLayer:
    lists: dict[str, Any] = {
        name: None if rows is None else rows[:count] for name, rows in layer if name != "layer"
    }
    return RecordedLayer(layer=layer.layer, **lists)
