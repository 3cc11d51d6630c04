"""Files of questions, and the rule for right answers."""

import json
from pathlib import Path

import pytest
from PIL import Image

from prismoe.model_plugins.tools.evaluate.questions import BUNDLED, Question, read_questions

GOOD = '{"image": "cat.png", "question": "What is this?", "answer": "cat"}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name in ("cat.png", "pictures/dog.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "torn.png").write_bytes(b"no picture")
    return tmp_path


def test_one_answer_or_several_and_blank_lines(folder: Path) -> None:
    several = {"image": "pictures/dog.png", "question": "Was\u2028ist\x85das?", "answer": ["Hund", "dog"]}
    file = folder / "questions.jsonl"
    text = f"{GOOD}\r\n\n{json.dumps(several, ensure_ascii=False)}\n"
    file.write_text(text, encoding="utf-8-sig", newline="")
    assert read_questions(file) == [
        Question(folder / "cat.png", "What is this?", ("cat",)),
        Question(folder / "pictures" / "dog.png", "Was\u2028ist\x85das?", ("Hund", "dog")),
    ]


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("cat", True),
        (" Cat.\n", True),
        ("CAT .", True),
        ("a feline", True),
        ("cat..", False),
        ("a cat", False),
        ("cat!", False),
        ("", False),
    ],
)
def test_a_right_answer_can_differ_in_case_space_and_a_full_stop(answer: str, is_right: bool) -> None:
    assert Question(Path(), "?", ("Cat", " A feline. ")).is_right(answer) is is_right


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "holds no questions: write one per line"),
        (["", " "], "holds no questions"),
        ([GOOD, "", "{"], "line 3 is not JSON (Expecting property name"),
        ([GOOD, "[1]"], "line 2 is not a question: the line: Input should be"),
        (['{"image": "cat.png", "question": "?"}'], "line 1 is not a question: answer: Field required"),
        ([GOOD.replace("}", ', "id": 5}')], "line 1 is not a question: id: Extra inputs are not permitted"),
        (
            [GOOD.replace('"cat"}', "[]}")],
            "line 1 is not a question: answer: List should have at least 1 item",
        ),
        ([GOOD.replace('"cat"}', '["cat", 5]}')], "answer.1: Input should be a valid string"),
        ([GOOD, GOOD.replace("cat.png", "cow.png")], "line 2: there is no picture"),
        ([GOOD.replace("cat.png", "torn.png")], "torn.png can't be read as a picture."),
        ([GOOD.replace("cat.png", "pictures")], "line 1: there is no picture"),
    ],
)
def test_wrong_lines_are_reported_with_their_number(folder: Path, lines: list[str], complaint: str) -> None:
    file = folder / "questions.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError) as reported:
        read_questions(file)
    assert complaint in str(reported.value)
    assert str(file) in str(reported.value)


def test_what_is_no_text_file(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no file .*none\.jsonl: name a file"):
        read_questions(folder / "none.jsonl")
    with pytest.raises(ValueError, match=r"cat\.png is not text in UTF-8"):
        read_questions(folder / "cat.png")


def test_the_bundled_questions() -> None:
    """They are the exam's five questions about each of the six pictures."""
    questions = read_questions(BUNDLED)
    assert len(questions) == 30
    listed = json.loads((BUNDLED.parent / "pictures.json").read_text())
    for entry, number in zip(listed, range(0, 30, 5), strict=True):
        five = questions[number : number + 5]
        assert {question.image.name for question in five} == {entry["file"]}
        reported = [question.accepted for question in five]
        assert reported == [(entry["name"],), (entry["category"],), (entry["kind"],), ("yes",), ("no",)]
        assert five[2].question == f"What kind of {entry['category']} is it?"
        assert entry["name"] in five[3].question and entry["name"] not in five[4].question
