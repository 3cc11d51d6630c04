"""What an inspection tells: for each token of a request what it is, and per MoE layer where it went."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from prismoe.kernels.modalities import MODALITIES
from prismoe.model_plugins.models.patch_grid import PatchGrid

TEXT = MODALITIES[0]


class Model(BaseModel):
    """Refuses unknown fields. The string behind a field describes it in /openapi.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RecordedLayer(Model):
    """What one MoE layer did with the tokens, each list by token."""

    layer: int
    """Its index in the decoder."""
    experts: list[list[int]]
    """The experts that a token used, best first."""
    weights: list[list[float]] | None
    """As many routing weights; None where the layer's kernel does not tell them."""
    tail: list[bool]
    """Whether it was a vision tail token in this layer."""
    router_logits: list[list[float]] | None
    """The gate's logits, where the request asks for them."""


class RecordedMedium(Model):
    """An image, a video or a sound of the request: a range of its positions."""

    modality: str
    """image, video or audio."""
    offset: int
    """The position of its first token."""
    length: int
    """Separators among its embeddings are counted, too."""
    grid: tuple[int, int, int] | None
    """Its frames, rows and columns, where the model's processor tells them."""

    def holds(self, position: int, modality: str) -> bool:
        """Whether the token at `position` is one of its embeddings."""
        return modality == self.modality and self.offset <= position < self.offset + self.length


class RecordedRows(Model):
    """What the worker recorded, each list but `media` by token in the order of their positions."""

    positions: list[int]
    """Each token's place in the request, from 0."""
    modalities: list[str]
    """text, image, video or audio."""
    media: list[RecordedMedium]
    """The request's images, videos and sounds."""
    layers: list[RecordedLayer]
    """Its MoE layers."""


class InspectedMedium(Model):
    """An image, a video or a sound. Where the numbers are None, nothing is known of its tokens' places."""

    modality: str
    """image, video or audio."""
    frames: int | None
    """How many frames its tokens come from."""
    rows: int | None
    """How many rows of tokens a frame has."""
    columns: int | None
    """How many tokens a row has."""


class InspectedToken(Model):
    """What a token is. `segment` is its place in `media`; frame, row and column say where in that it lies."""

    position: int
    """Its place in the request, from 0."""
    modality: str
    """text, image, video or audio."""
    text: str | None
    """What a text token says; None for others."""
    segment: int | None = None
    """The index in `media` of what it is a token of; None for text."""
    frame: int | None = None
    """Its frame, from 0."""
    row: int | None = None
    """Its row in the frame, from 0."""
    column: int | None = None
    """Its column in the frame, from 0."""


class Inspection(Model):
    """A request's tokens and where they went. Lists of `layers` follow `tokens`."""

    grid: PatchGrid | None
    """How an image's tokens lie on it, in a model that sees all images alike."""
    media: list[InspectedMedium]
    """The request's images, videos and sounds, in order."""
    prompt_tokens: int
    """How many of the tokens are the prompt's; the others are the answer's."""
    tokens: list[InspectedToken]
    """The tokens that were recorded, the prompt's first."""
    layers: list[RecordedLayer]
    """Where each MoE layer sent them."""
    left_out: int
    """How many tokens went beyond the limit and were not recorded."""


def inspection(
    rows: RecordedRows,
    grid: PatchGrid | None,
    prompt: Sequence[int],
    answer: Sequence[int],
    text_of: Callable[[int], str],
) -> Inspection:
    """The recorded rows of a request with these tokens."""
    # The answer's last token is never fed back; a scheduler that runs ahead computes it all the same.
    fed = [*prompt, *answer][: len(prompt) + len(answer) - 1]
    count = sum(position < len(fed) for position in rows.positions)
    return Inspection(
        grid=grid,
        media=[_described(medium, grid) for medium in rows.media],
        prompt_tokens=min(len(prompt), count),
        tokens=list(_tokens(rows, count, grid, fed, text_of)),
        layers=[_first(layer, count) for layer in rows.layers],
        left_out=len(fed) - count,
    )


def _described(medium: RecordedMedium, grid: PatchGrid | None) -> InspectedMedium:
    shape = (1, grid.rows, grid.columns) if grid is not None else medium.grid
    frames, rows, columns = shape or (None, None, None)
    return InspectedMedium(modality=medium.modality, frames=frames, rows=rows, columns=columns)


def _tokens(
    rows: RecordedRows,
    count: int,
    grid: PatchGrid | None,
    fed: Sequence[int],
    text_of: Callable[[int], str],
) -> Iterator[InspectedToken]:
    seen: Counter[int] = Counter()
    for position, modality in list(zip(rows.positions, rows.modalities, strict=True))[:count]:
        if modality == TEXT:
            yield InspectedToken(position=position, modality=TEXT, text=text_of(fed[position]))
            continue
        holders = (place for place, medium in enumerate(rows.media) if medium.holds(position, modality))
        segment = next(holders)
        frame, row, column = _place(rows.media[segment], seen[segment], grid) or (None, None, None)
        seen[segment] += 1
        yield InspectedToken(
            position=position,
            modality=modality,
            text=None,
            segment=segment,
            frame=frame,
            row=row,
            column=column,
        )


def _place(medium: RecordedMedium, token: int, grid: PatchGrid | None) -> tuple[int, int, int] | None:
    """Frame, row and column of a medium's n-th token; None where that is not known, or no patch."""
    if grid is not None:
        place = grid.place(token)
        return place and (0, *place)
    if medium.grid is None:
        return None
    _, rows, columns = medium.grid
    frame, patch = divmod(token, rows * columns)
    return (frame, *divmod(patch, columns))


def _first(layer: RecordedLayer, count: int) -> RecordedLayer:
    lists: dict[str, Any] = {
        name: None if rows is None else rows[:count] for name, rows in layer if name != "layer"
    }
    return RecordedLayer(layer=layer.layer, **lists)
