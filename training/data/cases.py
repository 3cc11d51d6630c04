"""What the model is scored on: each kept-back drawing, shown plainly on white, with one question on each
topic.
"""

import io
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from prismoe.training.data.augment import on_white
from prismoe.training.data.concepts import CONCEPT_BY_EMOJI, CONCEPTS
from prismoe.training.data.pictures import Pictures
from prismoe.training.data.questions import PLAIN, Topic, answer, exam_questions, fill
from prismoe.training.data.splits import split
from prismoe.training.scores.measured import Score

SIDE = 128  # pixels of a test picture


@dataclass(frozen=True)
class Case:
    """One question about one test picture."""

    split: str
    drawing: int
    topic: Topic
    question: str
    answer: str


@dataclass(frozen=True)
class Exam:
    """The cases, and the PNG of each drawing they ask about."""

    cases: list[Case]
    png: dict[int, bytes]


def build_exam(pictures: Pictures) -> Exam:
    """Name, category and kind of every kept-back drawing; and "is it" of what it shows and of something
    else.
    """
    drawings, pixels = pictures.load()
    splits = split(drawings)
    draw = random.Random(0)
    cases: list[Case] = []
    for name, indices in (("held-out drawings", splits.held_out), ("unseen style", splits.unseen_style)):
        for index in indices:
            if concept := CONCEPT_BY_EMOJI.get(drawings[index].emoji):
                cases += [Case(name, index, *asked) for asked in exam_questions(draw, concept)]
    shown = sorted({case.drawing for case in cases})
    rgb_BCHW = (on_white(torch.from_numpy(pixels[shown]), SIDE) * 255).round().byte()
    png = {index: _png(rgb_CHW) for index, rgb_CHW in zip(shown, rgb_BCHW, strict=True)}
    return Exam(cases, png)


def _png(rgb_CHW: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb_CHW.permute(1, 2, 0).numpy()).save(file, format="PNG")
    return file.getvalue()


def score(cases: Sequence[Case], replies: Sequence[str]) -> list[Score]:
    """Exact matches. `majority` is what always giving a wording's commonest answer would score."""
    groups: dict[tuple[str, Topic], list[tuple[Case, str]]] = defaultdict(list)
    for case, reply in zip(cases, replies, strict=True):
        groups[case.split, case.topic].append((case, reply))
    return [_score(name, topic, group) for (name, topic), group in groups.items()]


def _score(name: str, topic: Topic, group: list[tuple[Case, str]]) -> Score:
    right = sum(case.answer == reply.strip() for case, reply in group)
    commonest = _commonest(topic)
    majority = sum(case.answer == commonest.get(case.question, "yes") for case, _ in group)
    return Score(
        split=name,
        topic=topic,
        questions=len(group),
        right=right / len(group),
        majority=majority / len(group),
    )


def _commonest(topic: Topic) -> dict[str, str]:
    """Each wording of a question → the commonest answer to it over all the things the model knows."""
    by_wording: dict[str, Counter[str]] = defaultdict(Counter)
    if topic != "yes/no":
        for concept in CONCEPTS:
            by_wording[fill(PLAIN[topic], concept)][answer(topic, concept)] += 1
    return {wording: answers.most_common(1)[0][0] for wording, answers in by_wording.items()}
