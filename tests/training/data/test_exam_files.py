"""`prismoe evaluate` reads the questions that the training writes without a change."""

from pathlib import Path

from prismoe.model_plugins.tools.evaluate.questions import BUNDLED, read_questions
from prismoe.training.data.cases import build_exam
from prismoe.training.data.demo import COUNT, write_demo
from prismoe.training.data.exam_files import FILE, write_exam
from tests.training.data.test_calibration_drawings import made_up


def test_the_exam(tmp_path: Path) -> None:
    exam = build_exam(made_up(tmp_path))
    write_exam(exam, tmp_path / "exam")
    questions = read_questions(tmp_path / "exam" / FILE)
    asked = [(question.question, question.accepted) for question in questions]
    assert asked == [(case.question, (case.answer,)) for case in exam.cases]
    for question, case in zip(questions, exam.cases, strict=True):
        assert question.image.read_bytes() == exam.png[case.picture]


def test_the_questions_of_the_bundled_pictures(tmp_path: Path) -> None:
    write_demo(made_up(tmp_path), tmp_path)
    questions = read_questions(tmp_path / BUNDLED.parent.name / BUNDLED.name)
    assert len(questions) == 5 * COUNT == len(read_questions(BUNDLED))
