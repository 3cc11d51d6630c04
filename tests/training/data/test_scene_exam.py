"""The exam of scenes is what was committed, and asks about no drawing that is trained on."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from prismoe.training.data.cases import score
from prismoe.training.data.concepts import CONCEPT_BY_EMOJI
from prismoe.training.data.pictures import Drawing
from prismoe.training.data.questions import DRAWING_TOPICS, SCENE_TOPICS
from prismoe.training.data.scene_exam import (
    QUESTIONS,
    QUESTIONS_FILE,
    build_scene_exam,
    build_validation,
    lines,
    names,
    plan,
    plan_validation,
)
from prismoe.training.data.splits import split
from tests.training.data.test_calibration_drawings import made_up

TEXT = QUESTIONS_FILE.read_text()
LINES: list[dict[str, Any]] = [json.loads(line) for line in TEXT.splitlines()]
NAMES = sorted({thing[0] for line in LINES for thing in line["things"]})
DRAWINGS = [Drawing(emoji, style, "") for emoji, style, *_ in (name.split("/") for name in NAMES)]
"""Those that the file names."""
KINDS = len(DRAWING_TOPICS) * 2 + len(SCENE_TOPICS)


def test_the_committed_questions_are_those_of_their_drawings() -> None:
    assert names(DRAWINGS) == NAMES
    assert lines(plan(DRAWINGS), dict(enumerate(NAMES))) == TEXT
    assert len(TEXT) < 300_000


def test_no_drawing_of_the_exam_is_trained_on_or_chosen_by() -> None:
    splits = split(DRAWINGS)
    assert not splits.train and not splits.validation
    assert len(splits.held_out + splits.more_held_out) == 135 and len(splits.unseen_style) == 168


def test_each_split_has_enough_questions_on_each_topic() -> None:
    counts = Counter(
        (picture.split, question.topic) for picture in plan(DRAWINGS) for question in picture.asked
    )
    assert len(counts) == 2 * (len(DRAWING_TOPICS) + len(SCENE_TOPICS))
    assert min(counts.values()) >= QUESTIONS == 200


def test_answers_are_balanced() -> None:
    answers: dict[str | None, Counter[str]] = {}
    for picture in plan(DRAWINGS):
        for question in picture.asked:
            answers.setdefault(question.topic, Counter())[question.answer] += 1
    for topic in ("yes/no", "presence", "count"):
        commonest = max(answers[topic].values()) / answers[topic].total()
        assert commonest < {"count": 0.4}.get(topic, 0.55), topic
    assert max(answers["word"].values()) / answers["word"].total() < 0.5


def test_the_exam_is_drawn(tmp_path: Path) -> None:
    pictures = made_up(tmp_path)
    exam = build_scene_exam(pictures, questions=40)
    assert {case.picture for case in exam.cases} == exam.png.keys()
    drawings, _ = pictures.load()
    splits = split(drawings)
    kept_back = {*splits.held_out, *splits.more_held_out, *splits.unseen_style}
    known = {index for index in kept_back if drawings[index].emoji in CONCEPT_BY_EMOJI}
    assert {drawing for case in exam.cases for drawing in case.drawings} <= known
    scores = score(exam.cases, [case.answer for case in exam.cases])
    assert {found.questions for found in scores} == {40}
    assert len(scores) == 2 * KINDS and all(found.right == 1 and found.error == 0 for found in scores)
    wrong = score(exam.cases, ["" for _ in exam.cases])
    assert all(found.right == 0 for found in wrong)
    always_the_same = [found.majority for found in wrong if found.topic in ("yes/no", "presence", "count")]
    assert len(always_the_same) == 8 and all(0.2 < found < 0.8 for found in always_the_same), always_the_same


def test_validation_asks_about_other_drawings(tmp_path: Path) -> None:
    pictures = made_up(tmp_path)
    drawings, _ = pictures.load()
    validation = build_validation(pictures, questions=5)
    shown = {drawing for case in validation.cases for drawing in case.drawings}
    assert shown and shown <= set(split(drawings).validation)
    assert {picture.split for picture in plan_validation(drawings, 5)} == {"validation"}
