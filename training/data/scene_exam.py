"""The exam of scenes, and the file that holds its questions: `python -m prismoe.training.data.scene_exam`.

Each kept-back drawing is shown whole on white and smaller on another ground, with a question on each topic
of a single drawing. Then it is in scenes with others, until each topic of scenes has QUESTIONS questions. The
questions follow from the drawings' names and a fixed seed. They were committed, in QUESTIONS_FILE, before a
model was trained that they are asked of.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from prismoe.training.data.cases import SIDE, Case, Exam, Look
from prismoe.training.data.concepts import CONCEPT_BY_EMOJI, Concept
from prismoe.training.data.pictures import Drawing, Pictures, fetched_pictures
from prismoe.training.data.questions import (
    DRAWING_TOPICS,
    PLAIN,
    SCENE_TOPICS,
    Question,
    answer,
    fill,
    other_thing,
)
from prismoe.training.data.render import plain_pictures
from prismoe.training.data.scene_questions import ask_plainly, askable
from prismoe.training.data.scenes import MOST_THINGS, Known, Scene, laid_out, single, small
from prismoe.training.data.splits import split

QUESTIONS = 200
"""On each topic of scenes in each split. As many drawings of a split, which is all, are also shown alone."""
QUESTIONS_FILE = Path(__file__).with_name("scene_exam.jsonl")
HELD_OUT, UNSEEN_STYLE, VALIDATION = "held-out drawings", "unseen style", "validation"


@dataclass(frozen=True)
class Planned:
    """A picture of the exam, before it is drawn, with its questions."""

    split: str
    look: Look
    scene: Scene
    asked: list[Question] = field(default_factory=list)


class Deck:
    """Deals drawings of known concepts, all of them before any comes again."""

    def __init__(self, draw: random.Random, known: Sequence[Known]) -> None:
        self.draw, self.known = draw, known
        self.left: list[Known] = []
        self.by_concept: dict[Concept, list[Known]] = {}
        for each in known:
            self.by_concept.setdefault(each.concept, []).append(each)

    def another(self) -> Known:
        """The next drawing."""
        if not self.left:
            self.left = self.draw.sample(self.known, len(self.known))
        return self.left.pop()

    def again(self, concept: Concept) -> Known:
        """A drawing of a concept."""
        return self.draw.choice(self.by_concept[concept])


def names(drawings: Iterable[Drawing]) -> list[str]:
    """A name for each drawing: its emoji and its style, and a number where that style has several."""
    counts: Counter[str] = Counter()
    found = []
    for drawing in drawings:
        name = f"{drawing.emoji}/{drawing.style}"
        counts[name] += 1
        found.append(name if counts[name] == 1 else f"{name}/{counts[name]}")
    return found


def plan(drawings: Sequence[Drawing], questions: int = QUESTIONS) -> list[Planned]:
    """The exam of the kept-back drawings among `drawings`."""
    splits = split(drawings)
    planned: list[Planned] = []
    for name, indices in (
        (HELD_OUT, splits.held_out + splits.more_held_out),
        (UNSEEN_STYLE, splits.unseen_style),
    ):
        planned += _of_split(name, drawings, indices, questions)
    return planned


def plan_validation(drawings: Sequence[Drawing], questions: int = QUESTIONS) -> list[Planned]:
    """The same questions about the drawings that a run is chosen on."""
    return list(_of_split(VALIDATION, drawings, split(drawings).validation, questions))


def _of_split(
    name: str, drawings: Sequence[Drawing], indices: Iterable[int], questions: int
) -> Iterator[Planned]:
    draw = random.Random(name)
    name_of = dict(enumerate(names(drawings)))
    known = [
        Known(concept, index)
        for index in sorted(indices, key=lambda index: name_of[index])
        if (concept := CONCEPT_BY_EMOJI.get(drawings[index].emoji))
    ]
    if not known:
        return
    for each in known[:questions]:
        drawing_questions = _drawing_questions(draw, each.concept)
        yield Planned(name, "whole", single(each), drawing_questions)
        yield Planned(name, "small", small(draw, each), drawing_questions)
    deck, counts, number = Deck(draw, known), Counter[str](), 0
    while any(counts[topic] < questions for topic in SCENE_TOPICS):
        number += 1
        scene = laid_out(draw, 1 + number % MOST_THINGS, deck.another, deck.again, draw.random() < 0.7)
        topics = [topic for topic in SCENE_TOPICS if topic in askable(scene) and counts[topic] < questions]
        # One thing in three of the counted ones is not there.
        asked = [
            ask_plainly(draw, topic, scene, draw.random() < (2 / 3 if topic == "count of a thing" else 1 / 2))
            for topic in topics
        ]
        counts.update(topics)
        if asked:
            yield Planned(name, "scene", scene, asked)


def _drawing_questions(draw: random.Random, concept: Concept) -> list[Question]:
    """One on each topic."""
    asked = []
    for topic in DRAWING_TOPICS:
        if topic == "yes/no":
            thing = concept if draw.random() < 0.5 else other_thing(draw, concept)
            reply = "yes" if thing == concept else "no"
            asked.append(Question(topic, fill(PLAIN[topic], concept, thing), reply))
        else:
            asked.append(Question(topic, fill(PLAIN[topic], concept), answer(topic, concept)))
    return asked


def lines(planned: Sequence[Planned], name_of: Mapping[int, str]) -> str:
    """The questions as JSON lines, a picture each.

    A line has each drawing with its box and its place, the word with its box, and each question with its
    answer. A single drawing without a box is whole. A line without questions asks those of the line before.
    """
    return "".join(json.dumps(_line(each, name_of), separators=(",", ":")) + "\n" for each in planned)


def _line(planned: Planned, name_of: Mapping[int, str]) -> dict[str, Any]:
    scene = planned.scene
    line: dict[str, Any] = {"split": planned.split}
    if planned.look == "whole":
        line["things"] = [[name_of[scene.things[0].drawing]]]
    else:
        line["things"] = [
            [name_of[thing.drawing], *thing.box, *([thing.place] if thing.place else [])]
            for thing in scene.things
        ]
    if scene.word:
        line["word"] = [scene.word.text, *scene.word.box]
    if planned.look != "small":
        line["asked"] = [f"{question.text} {question.answer}" for question in planned.asked]
    return line


def build_scene_exam(pictures: Pictures, questions: int = QUESTIONS) -> Exam:
    """The exam of scenes with its pictures."""
    drawings, pixels = pictures.load()
    return _drawn(plan(drawings, questions), torch.from_numpy(pixels))


def build_validation(pictures: Pictures, questions: int = QUESTIONS) -> Exam:
    """What a run is chosen on."""
    drawings, pixels = pictures.load()
    return _drawn(plan_validation(drawings, questions), torch.from_numpy(pixels))


def _drawn(planned: Sequence[Planned], rgba_NHWC: torch.Tensor) -> Exam:
    cases = [
        Case(
            each.split,
            number,
            question.topic,
            question.text,
            question.answer,
            tuple(thing.drawing for thing in each.scene.things),
            each.look,
        )
        for number, each in enumerate(planned)
        for question in each.asked
        if question.topic is not None
    ]
    scenes = [each.scene for each in planned]
    grounds = [None if each.look == "whole" else number for number, each in enumerate(planned)]
    return Exam(cases, dict(enumerate(plain_pictures(scenes, rgba_NHWC, SIDE, grounds))))


def main() -> None:
    """Write the questions to QUESTIONS_FILE."""
    drawings, _ = fetched_pictures(__doc__).load()
    QUESTIONS_FILE.write_text(lines(plan(drawings), dict(enumerate(names(drawings)))))


if __name__ == "__main__":
    main()
