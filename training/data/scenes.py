"""What a picture shows: one to four drawings, and now and then a written word, each at its place.

A scene is a plan. `render.py` makes the picture of it, and `scene_questions.py` asks about it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prismoe.training.data.concepts import Concept

MOST_THINGS = 4
PLACES: dict[int, tuple[str, ...]] = {
    2: ("top left", "top right", "bottom left", "bottom right"),
    3: (
        *("top left", "top", "top right"),
        *("left", "centre", "right"),
        *("bottom left", "bottom", "bottom right"),
    ),
}
"""The names of a layout's cells, row by row, by its cells a side."""
WORDS = (
    *("open", "stop", "exit", "sale", "free", "cafe", "park", "shop", "north", "south", "east", "west"),
    *("hello", "love", "new", "hot", "cold", "push", "pull", "menu", "bank", "hotel", "post", "zoo"),
    *("gym", "bar", "news", "music", "salt", "wood", "gold", "blue"),
)
"""The words that are written in pictures. None is the name of a thing or of a place."""
WORD_HEIGHT = 0.3
"""A word's height, as a share of its width."""
AGAIN = 0.3
"""How often a scene's next drawing shows a thing that is there already."""
WITH_WORD = 0.5
SINGLE, SMALL = 0.4, 0.2
"""The shares of training pictures that show one drawing: as large as the picture, and smaller."""


class Box(NamedTuple):
    """A square in the picture, whose coordinates run from -1 to 1, to the right and down."""

    x: float
    y: float
    size: float
    """The share of the picture's side."""


WHOLE = Box(0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Thing:
    """A drawing in a scene. `drawing` is an index into the list of drawings."""

    concept: Concept
    drawing: int
    box: Box = WHOLE
    place: str | None = None
    """The name of its cell. None: it is the only one, and in no layout."""


@dataclass(frozen=True)
class Word:
    """A written word."""

    text: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """What one picture shows."""

    things: tuple[Thing, ...]
    word: Word | None = None

    @property
    def concepts(self) -> list[Concept]:
        """What the drawings show, one for each drawing."""
        return [thing.concept for thing in self.things]


class Known(NamedTuple):
    """A drawing of a known concept."""

    concept: Concept
    drawing: int


def single(known: Known) -> Scene:
    """One drawing, as large as the picture."""
    return Scene((Thing(*known),))


def small(draw: random.Random, known: Known) -> Scene:
    """One drawing, a third to four fifths as large as the picture, anywhere in it."""
    size = draw.uniform(0.35, 0.8)
    x, y = (draw.uniform(size - 1, 1 - size) for _ in "xy")
    return Scene((Thing(*known, _rounded(x, y, size)),))


def laid_out(
    draw: random.Random,
    count: int,
    another: Callable[[], Known],
    again: Callable[[Concept], Known],
    with_word: bool,
) -> Scene:
    """`count` drawings in the cells of a layout, a word with them in a row that has no drawing.

    `another` gives a drawing, and `again` one of a given concept.
    """
    side = 2 if count <= (2 if with_word else MOST_THINGS) and draw.random() < 0.7 else 3
    row = draw.choice((0, side - 1)) if with_word else None
    cells = draw.sample([cell for cell in range(side**2) if cell // side != row], count)
    things: list[Thing] = []
    for cell in cells:
        is_again = bool(things) and draw.random() < AGAIN
        known = again(draw.choice(things).concept) if is_again else another()
        things.append(Thing(*known, _in_cell(draw, cell, side), PLACES[side][cell]))
    if row is None:
        return Scene(tuple(things))
    return Scene(tuple(things), Word(draw.choice(WORDS), _rounded(0.0, (2 * row + 1) / side - 1, 0.95)))


def any_scene(draw: random.Random, another: Callable[[], Known], again: Callable[[Concept], Known]) -> Scene:
    """A training picture: single, small or laid out."""
    lot = draw.random()
    if lot < SINGLE:
        return single(another())
    if lot < SINGLE + SMALL:
        return small(draw, another())
    count, with_word = draw.randint(1, MOST_THINGS), draw.random() < WITH_WORD
    return laid_out(draw, count, another, again, with_word)


def shown_at(scene: Scene, x: float, y: float) -> str | None:
    """The name or the word that is at a point of the picture."""
    for thing in scene.things:
        if max(abs(x - thing.box.x), abs(y - thing.box.y)) < thing.box.size:
            return thing.concept.name
    word = scene.word
    if word and abs(x - word.box.x) < word.box.size and abs(y - word.box.y) < word.box.size * WORD_HEIGHT:
        return word.text
    return None


def _in_cell(draw: random.Random, cell: int, side: int) -> Box:
    """Most of the cell, not always in its middle."""
    row, column = divmod(cell, side)
    size = draw.uniform(0.75, 1) / side
    x, y = ((2 * at + 1) / side - 1 + draw.uniform(-1, 1) * (1 / side - size) for at in (column, row))
    return _rounded(x, y, size)


def _rounded(x: float, y: float, size: float) -> Box:
    """As the exam's file holds it."""
    return Box(round(x, 2), round(y, 2), round(size, 2))


def spelt(scene: Scene, side: int) -> Sequence[str | None]:
    """`shown_at` the middle of each of `side` × `side` squares of the picture, row by row."""
    middles = [(2 * at + 1) / side - 1 for at in range(side)]
    return [shown_at(scene, x, y) for y in middles for x in middles]
