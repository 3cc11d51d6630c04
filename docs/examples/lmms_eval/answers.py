"""What the task's YAML calls: the picture of a question, and whether an answer is right."""

from pathlib import Path
from typing import Any

from PIL import Image


def picture(question: dict[str, Any]) -> list[Image.Image]:
    """The picture, out of the folder `exam` beside where lmms-eval runs."""
    return [Image.open(Path("exam") / question["image"]).convert("RGB")]


def results(question: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """1 for a right answer, as `prismoe evaluate` has it: but for case, outer space and a full stop."""
    return {"right": float(_plain(answers[0]) == _plain(question["answer"]))}


def _plain(text: str) -> str:
    return text.strip().lower().removesuffix(".").rstrip()
