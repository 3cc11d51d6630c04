"""The exams: questions with pictures and answers, and their score."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from prismoe.training.data.augment import on_white
from prismoe.training.data.concepts import CONCEPT_BY_EMOJI, CONCEPTS
from prismoe.training.data.pictures import Pictures
from prismoe.training.data.questions import (
    DRAWING_TOPICS,
    PLAIN,
    Topic,
    answer,
    exam_questions,
    fill,
)
from prismoe.training.data.render import png
from prismoe.training.data.splits import split
from prismoe.training.intervals import Clusters
from prismoe.training.scores.measured import Score

SIDE = 128  # pixels of a test picture
Look = Literal["whole", "small", "scene"]
"""One drawing on white, as large as the picture; one smaller drawing on another ground; one to four in a
layout.
"""


@dataclass(frozen=True)
class Case:
    """One question about one test picture. `drawings` are all that the picture shows."""

    split: str
    picture: int
    topic: Topic
    question: str
    answer: str
    drawings: tuple[int, ...]
    look: Look = "whole"


@dataclass(frozen=True)
class Exam:
    """The cases, and the PNG of each picture that they ask about."""

    cases: list[Case]
    png: dict[int, bytes]


def build_exam(pictures: Pictures) -> Exam:
    """The exam of single drawings on white: name, category and kind of every drawing of the first lot of
    held-out drawings and of the unseen style; and "is it" of what it shows and of something else.
    """
    drawings, pixels = pictures.load()
    splits = split(drawings)
    draw = random.Random(0)
    cases: list[Case] = []
    for name, indices in (("held-out drawings", splits.held_out), ("unseen style", splits.unseen_style)):
        for index in indices:
            if concept := CONCEPT_BY_EMOJI.get(drawings[index].emoji):
                cases += [Case(name, index, *asked, (index,)) for asked in exam_questions(draw, concept)]
    shown = sorted({case.picture for case in cases})
    rgb_BCHW = on_white(torch.from_numpy(pixels[shown]), SIDE)
    return Exam(cases, {index: png(rgb_CHW) for index, rgb_CHW in zip(shown, rgb_BCHW, strict=True)})


def score(cases: Sequence[Case], replies: Sequence[str]) -> list[Score]:
    """Exact matches. `majority` is what always giving a wording's commonest answer would score."""
    groups: dict[tuple[str, Look, Topic], list[tuple[Case, str]]] = defaultdict(list)
    for case, reply in zip(cases, replies, strict=True):
        groups[case.split, case.look, case.topic].append((case, reply))
    return [_score(group) for group in groups.values()]


def _score(group: Sequence[tuple[Case, str]]) -> Score:
    cases = [case for case, _ in group]
    first = cases[0]
    commonest = _commonest(cases)
    majority = sum(case.answer == commonest.get(case.question, "yes") for case in cases)
    clusters = Clusters([case.drawings for case in cases])
    right = clusters.mean([case.answer == reply.strip() for case, reply in group])
    return Score(
        split=first.split,
        look=first.look,
        topic=first.topic,
        questions=len(group),
        right=right.value,
        error=right.error,
        majority=majority / len(group),
    )


def _commonest(cases: Sequence[Case]) -> dict[str, str]:
    """Each wording of a topic's questions → the commonest answer to it: over all the things that the model
    knows, or over these questions where they are about a scene.
    """
    topic = cases[0].topic
    by_wording: dict[str, Counter[str]] = defaultdict(Counter)
    if topic in ("name", "category", "kind"):
        for concept in CONCEPTS:
            by_wording[fill(PLAIN[topic], concept)][answer(topic, concept)] += 1
    elif topic not in DRAWING_TOPICS:
        [(commonest, _)] = Counter(case.answer for case in cases).most_common(1)
        return {case.question: commonest for case in cases}
    return {wording: answers.most_common(1)[0][0] for wording, answers in by_wording.items()}
