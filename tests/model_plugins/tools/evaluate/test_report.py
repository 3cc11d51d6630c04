"""The table and the JSON for two made-up routings with known counts."""

import json
from pathlib import Path

import pytest

from prismoe.model_plugins.tools.evaluate.questions import Question
from prismoe.model_plugins.tools.evaluate.report import as_json, compare, table
from prismoe.model_plugins.tools.evaluate.run import Run

QUESTIONS = [Question(Path(f"{number // 2}.png"), "?", ("yes",)) for number in range(4)]
FIRST = Run(
    None,
    ["ltdr"],
    [],
    ["yes", "Yes.", "no", "no"],
    {"text": 40, "image": 360},
    {"text": 20, "image": 120},
    1234.5,
)
SECOND = Run(
    {"policy": "topk", "top_k": 1, "layers": {"2": {"top_k": 2}}},
    ["topk"], [], ["yes", "no", "no", "no"], {"text": 30, "image": 120}, {"text": 20, "image": 120}, 99.4,
)  # fmt: skip
UNSEEN = Run({"policy": "native"}, [], ["It can't be seen."], ["yes", "no", "yes", "yes"], {}, {}, 5.0)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_rows() -> None:
    first, second = compare(QUESTIONS, [FIRST, SECOND])
    assert (first.right, first.accuracy, first.minus_first, first.share_of_first_uses) == (2, 0.5, None, 1)
    assert first.interval == pytest.approx((0.1500, 0.8500), abs=5e-5)
    assert first.experts_per_token == {"text": 2, "image": 3}
    assert (second.right, second.accuracy, second.share_of_first_uses) == (1, 0.25, 150 / 400)
    assert second.experts_per_token == {"text": 1.5, "image": 1}
    assert second.minus_first is not None
    assert (second.minus_first.share, second.minus_first.won, second.minus_first.lost) == (-0.25, 0, 1)
    # Of two pictures, one has a loss among its two questions. A draw has it never, once or twice.
    assert second.minus_first.interval == (-0.5, 0)


def test_the_table() -> None:
    lines = table(QUESTIONS, compare(QUESTIONS, [FIRST, SECOND])).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert cells(lines[0]) == [
        *("routing", "right", "minus the first, points", "won, lost"),
        *("experts a token, text", "experts a token, image", "expert uses", "tokens/s"),
    ]
    own = ["the checkpoint's own (ltdr)", "50.0% (15.0 to 85.0)", "", "", "2.00", "3.00", "100.0%", "1,234"]
    assert cells(lines[2]) == own
    assert cells(lines[3]) == [
        *('topk, top_k 1, layers {"2": {"top_k": 2}}', "25.0% (4.6 to 69.9)", "-25.0 (-50.0 to +0.0)"),
        *("0, 1", "1.50", "1.00", "37.5%", "99"),
    ]
    assert lines[4].startswith("4 questions about 2 pictures.")
    assert len(lines) == 5


def test_unknown_values_are_reported_and_not_shown_as_zero() -> None:
    rows = compare(QUESTIONS, [UNSEEN, FIRST])
    lines = table(QUESTIONS, rows).splitlines()
    assert cells(lines[2])[4:] == ["not seen", "not seen", "not seen", "5"]
    assert cells(lines[3])[4:] == ["2.00", "3.00", "not seen", "1,234"]
    assert lines[-1] == "It can't be seen."
    assert [row.share_of_first_uses for row in rows] == [None, None]
    assert cells(table(QUESTIONS, compare(QUESTIONS, [UNSEEN])).splitlines()[2])[4:] == ["not seen", "5"]


def test_the_json_has_the_same_figures_and_the_answers() -> None:
    written = json.loads(as_json("MODEL", QUESTIONS, 16, compare(QUESTIONS, [FIRST, SECOND])))
    assert (written["model"], written["questions"], written["max_tokens"]) == ("MODEL", 4, 16)
    first, second = written["routings"]
    assert first["routing"] is None and first["minus_first"] is None
    assert first["answers"] == ["yes", "Yes.", "no", "no"]
    assert second["routing"] == SECOND.routing
    assert second["minus_first"] == {"share": -0.25, "interval": [-0.5, 0], "won": 0, "lost": 1}
    assert second["expert_uses"] == {"text": 30, "image": 120}
    assert second["share_of_first_uses"] == 0.375
