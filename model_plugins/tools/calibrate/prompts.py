"""The requests that a checkpoint is calibrated on: pictures, each with a question."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.models.moe_llava.families import family_of
from prismoe.model_plugins.models.moe_llava.processing import IMAGE_MARK, pixel_values
from prismoe.model_plugins.tools.check.reference import IMAGE

Item = TypeVar("Item")

QUESTIONS = (
    "What is this?",
    "Describe the picture.",
    "Which category does it belong to?",
    "Is there a dog in the picture?",
)
"""Asked in turn where the user gives none."""

SHEET = bundled_checkpoint() / "calibration" / "drawings.png"
"""Drawings that the bundled model was trained on, in a grid of tiles."""
SHEET_TILE = 64  # pixels


@dataclass(frozen=True)
class CalibrationPrompt:
    """One request: its tokens, IMAGE among them, and the image as the tower takes it, `[1, 3, H, W]`."""

    name: str
    token_ids: list[int]
    pixel_values: np.ndarray


def read_questions(file: Path | None) -> Sequence[str]:
    """The lines of a file, or QUESTIONS. Raises ValueError with a sentence where there are none."""
    if file is None:
        return QUESTIONS
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{file} holds no questions: write one a line.")
    return lines


def pictures(folder: Path | None, count: int) -> list[Image.Image]:
    """`count` pictures of a folder, spread over its files by name, or of SHEET; fewer where it has fewer.

    Raises ValueError with a sentence when there are none.
    """
    if folder is None:
        return _spread(list(_tiles(Image.open(SHEET).convert("RGB"))), count)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    extensions = Image.registered_extensions()
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in extensions)
    if not files:
        raise ValueError(f"{folder} holds no pictures (PNG, JPEG, WebP and the like).")
    return [_open(file) for file in _spread(files, count)]


def calibration_prompts(
    checkpoint: str, images: Sequence[Image.Image], questions: Sequence[str]
) -> list[CalibrationPrompt]:
    """Each image with the next of the questions, in the checkpoint's chat template."""
    config = AutoConfig.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    template = tokenizer.chat_template or family_of(config).chat_template.read_text()
    token_ids = [_token_ids(tokenizer, template, question) for question in questions]
    return [
        CalibrationPrompt(
            f"picture {number}",
            token_ids[number % len(questions)],
            pixel_values(config, checkpoint, [image]).numpy(),
        )
        for number, image in enumerate(images)
    ]


def _token_ids(tokenizer: PreTrainedTokenizerBase, template: str, question: str) -> list[int]:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = tokenizer.apply_chat_template(
        [message], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    before, after = (tokenizer.encode(part, add_special_tokens=False) for part in str(text).split(IMAGE_MARK))
    return [*before, IMAGE, *after]


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} can't be read as a picture: {error}.") from error


def _tiles(sheet: Image.Image) -> Iterator[Image.Image]:
    for top in range(0, sheet.height, SHEET_TILE):
        for left in range(0, sheet.width, SHEET_TILE):
            yield sheet.crop((left, top, left + SHEET_TILE, top + SHEET_TILE))


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the items, at equal distances."""
    if len(items) <= count:
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]
