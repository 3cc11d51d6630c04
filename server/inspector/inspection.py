"""The data of an inspection: a request's tokens, and the experts that they used in each MoE layer."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from prismoe.kernels.modalities import MODALITIES
from prismoe.model_plugins.models.patch_grid import PatchGrid

TEXT = MODALITIES[0]


class Model(BaseModel):
    """A model that refuses unknown fields. The string after a field is its description in /openapi.json."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RecordedLayer(Model):
    """The routing of the tokens in one MoE layer. Each list has an entry for each token."""

    layer: int
    """The layer's index in the decoder."""
    experts: list[list[int]]
    """The experts that a token used, the best first."""
    weights: list[list[float]] | None
    """The routing weights of these experts; None if the layer's kernel does not return them."""
    tail: list[bool]
    """Whether a token was a vision tail token in this layer."""
    router_logits: list[list[float]] | None
    """The gate's logits for a token; None if the request does not ask for them."""


class RecordedMedium(Model):
    """An image, a video or a sound of the request, as a range of positions."""

    modality: str
    """image, video or audio."""
    offset: int
    """The position of its first token."""
    length: int
    """The number of its positions, including separators among its embeddings."""
    grid: tuple[int, int, int] | None
    """Its numbers of frames, rows and columns; None if the model's processor does not return them."""

    def holds(self, position: int, modality: str) -> bool:
        """Return whether the token at `position` is one of its embeddings."""
        return modality == self.modality and self.offset <= position < self.offset + self.length


class RecordedRows(Model):
    """The worker's record. The lists of tokens are in the order of the tokens' positions."""

    positions: list[int]
    """The position of each token in the request, from 0."""
    modalities: list[str]
    """The modality of each token: text, image, video or audio."""
    media: list[RecordedMedium]
    """The request's images, videos and sounds."""
    layers: list[RecordedLayer]
    """The model's MoE layers."""


class InspectedMedium(Model):
    """An image, a video or a sound. The numbers are None if the places of its tokens are unknown."""

    modality: str
    """image, video or audio."""
    frames: int | None
    """The number of frames."""
    rows: int | None
    """The number of rows of tokens in a frame."""
    columns: int | None
    """The number of tokens in a row."""


class InspectedToken(Model):
    """A token of the request. frame, row and column are its place in its image, video or sound."""

    position: int
    """Its position in the request, from 0."""
    modality: str
    """text, image, video or audio."""
    text: str | None
    """The text of a text token; None for other tokens."""
    segment: int | None = None
    """The index in `media` of its image, video or sound; None for text."""
    frame: int | None = None
    """Its frame, from 0; None if that is unknown."""
    row: int | None = None
    """Its row in the frame, from 0; None if that is unknown."""
    column: int | None = None
    """Its column in the frame, from 0; None if that is unknown."""


class Inspection(Model):
    """A request's tokens and their routing. The lists in `layers` have the order of `tokens`."""

    grid: PatchGrid | None
    """The arrangement of an image's tokens on the image; None if it differs between images."""
    media: list[InspectedMedium]
    """The request's images, videos and sounds, in order."""
    prompt_tokens: int
    """The number of tokens that belong to the prompt; the others belong to the answer."""
    tokens: list[InspectedToken]
    """The recorded tokens, the prompt's first."""
    layers: list[RecordedLayer]
    """The routing of the tokens in each MoE layer."""
    left_out: int
    """The number of tokens beyond the limit, which were not recorded."""


def inspection(
    rows: RecordedRows,
    grid: PatchGrid | None,
    prompt: Sequence[int],
    answer: Sequence[int],
    text_of: Callable[[int], str],
) -> Inspection:
    """Return the inspection of a request, from its recorded rows and the tokens of its prompt and answer.

    `text_of` returns the text of a token.
    """
    # The answer's last token is never fed back to the model, but a scheduler that runs ahead computes it.
    fed = [*prompt, *answer][: len(prompt) + len(answer) - 1]
    count = sum(position < len(fed) for position in rows.positions)
    return Inspection(
        grid=grid,
        media=[_inspected(medium, grid) for medium in rows.media],
        prompt_tokens=min(len(prompt), count),
        tokens=list(_tokens(rows, count, grid, fed, text_of)),
        layers=[_first(layer, count) for layer in rows.layers],
        left_out=len(fed) - count,
    )


def _inspected(medium: RecordedMedium, grid: PatchGrid | None) -> InspectedMedium:
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
    """Return the frame, row and column of a medium's n-th token; None if unknown, or if it is no patch."""
    if grid is not None:
        place = grid.place(token)
        return place and (0, *place)
    if medium.grid is None:
        return None
    _, rows, columns = medium.grid
    frame, patch = divmod(token, rows * columns)
    return (frame, *divmod(patch, columns))


def _first(layer: RecordedLayer, count: int) -> RecordedLayer:
    """Return the layer with only its first tokens."""
    lists: dict[str, Any] = {
        name: None if rows is None else rows[:count] for name, rows in layer if name != "layer"
    }
    return RecordedLayer(layer=layer.layer, **lists)
