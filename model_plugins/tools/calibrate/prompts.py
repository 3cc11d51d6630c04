"""The prompts for calibration: pictures, each with a question."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError

from prismoe.model_plugins.files.bundled import bundled_checkpoint

Item = TypeVar("Item")

QUESTIONS = (
    "What is this?",
    "Describe the picture.",
    "Which category does it belong to?",
    "Is there a dog in the picture?",
)
"""The default questions, asked in turn."""

SHEET = bundled_checkpoint() / "calibration" / "drawings.png"
"""Drawings that the bundled model was trained on, in a grid of tiles."""
SHEET_TILE = 64  # pixels


class Pictures(NamedTuple):
    """Pictures that are opened when they are needed, so that only one at a time is in memory."""

    openers: Sequence[Callable[[], Image.Image]]
    """Each returns a picture in RGB. Raises ValueError where it is cut short."""
    digest: str
    """Identifies the pictures."""


def read_questions(file: Path | None) -> Sequence[str]:
    """The lines of a file, or QUESTIONS. Raises ValueError for a file without questions."""
    if file is None:
        return QUESTIONS
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{file} holds no questions: write one per line.")
    return lines


def pictures(folder: Path | None, count: int) -> Pictures:
    """`count` pictures of a folder, spread over its files by name, or of SHEET; fewer if there are fewer.

    Raises ValueError when there are none, or a file is not a picture.
    """
    if folder is None:
        tiles = _spread(list(_tiles(Image.open(SHEET).convert("RGB"))), count)
        return Pictures([tile.copy for tile in tiles], _digest([SHEET]))
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: name one with pictures.")
    extensions = Image.registered_extensions()
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in extensions)
    if not files:
        raise ValueError(f"{folder} holds no pictures (PNG, JPEG, WebP or similar): name another folder.")
    chosen = _spread(files, count)
    for file in chosen:
        _read_header(file)
    return Pictures([partial(_open, file) for file in chosen], _digest(chosen))


def _read_header(file: Path) -> None:
    try:
        with Image.open(file):
            pass
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} can't be read as a picture: {error}.") from error


def _open(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{file} can't be read as a picture: {error}.") from error


def _digest(files: Sequence[Path]) -> str:
    digest = sha256()
    for file in files:
        digest.update(sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _tiles(sheet: Image.Image) -> Iterator[Image.Image]:
    for top in range(0, sheet.height, SHEET_TILE):
        for left in range(0, sheet.width, SHEET_TILE):
            yield sheet.crop((left, top, left + SHEET_TILE, top + SHEET_TILE))


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, evenly spaced."""
    if len(items) <= count:
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]
