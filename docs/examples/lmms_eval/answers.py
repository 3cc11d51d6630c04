"""Functions that the task's YAML names: they load a question's picture and score its answer."""

from pathlib import Path
from typing import Any

from PIL import Image


def picture(question: dict[str, Any]) -> list[Image.Image]:
    """The question's picture, from the folder `exam` in lmms-eval's working directory."""
    return [Image.open(Path("exam") / question["image"]).convert("RGB")]


def results(question: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """1 for a right answer. As in `prismoe evaluate`, case, outer space and a full stop don't matter."""
    return {"right": float(_plain(answers[0]) == _plain(question["answer"]))}


def _plain(text: str) -> str:
    return text.strip().lower().removesuffix(".").rstrip()
