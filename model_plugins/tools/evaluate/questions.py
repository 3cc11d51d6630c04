"""Reads the questions for a model: a file with one JSON object per line."""

import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prismoe.model_plugins.files.bundled import bundled_checkpoint

BUNDLED = bundled_checkpoint() / "pictures" / "questions.jsonl"
"""The default: 30 questions about the bundled model's six pictures."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: list[str] = Field(min_length=1)

    @field_validator("answer", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


@dataclass(frozen=True)
class Question:
    """A question about a picture, and its right answers."""

    image: Path
    question: str
    accepted: tuple[str, ...]

    def is_right(self, answer: str) -> bool:
        """Whether an answer equals an accepted one, ignoring case, outer white space and a full stop."""
        return _plain(answer) in map(_plain, self.accepted)


def read_questions(file: Path) -> list[Question]:
    """The questions of a file; a picture's path is relative to the file's folder.

    Raises ValueError with the line's number where a question can't be used.
    """
    if not file.is_file():
        raise ValueError(f"There is no file {file}: name a file of questions.")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: write one JSON object per line.") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ValueError(
            f"{file} holds no questions: write one per line, as in "
            '{"image": "cat.png", "question": "What is this?", "answer": "cat"}.'
        )
    return [_question(file, number, line) for number, line in numbered]


def _question(file: Path, number: int, line: str) -> Question:
    place = f"{file}, line {number}"
    try:
        read = _Line.model_validate(json.loads(line))
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON ({error}): write one object per line.") from error
    except ValidationError as error:
        fault = error.errors()[0]
        raise ValueError(
            f"{place} is not a question: {'.'.join(map(str, fault['loc'])) or 'the line'}: {fault['msg']}. "
            "A line has image, question and answer, which is a text or a list of texts."
        ) from error
    image = file.parent / read.image
    if not image.is_file():
        raise ValueError(f"{place}: there is no picture {image}: correct its path.")
    try:
        with Image.open(image):  # reads only the header
            pass
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{place}: {image} can't be read as a picture.") from error
    return Question(image, read.question, tuple(read.answer))


def _plain(answer: str) -> str:
    return answer.strip().lower().removesuffix(".").rstrip()
