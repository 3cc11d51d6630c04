"""Each check leaves one line in a folder, however it ends."""

from pathlib import Path

import pytest

from prismoe.benchmarks.gpu_check.check import Line
from prismoe.benchmarks.gpu_check.run import LINES, kept_lines, run_checks
from tests.benchmarks.gpu_check import made_up

NAMES = [check.name for check in made_up.CHECKS]


def run(out: Path, limit_s: float = 120, again: bool = False) -> int:
    return run_checks(made_up.__name__, out, is_dry=True, limit_s=limit_s, again=again)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checks") / "lines"
    assert run(out) == 3
    return out


def test_each_check_leaves_a_line_in_order(out: Path) -> None:
    lines = kept_lines(out)
    assert [line.name for line in lines] == NAMES
    assert [line.outcome for line in lines] == ["ok", "failed", "failed", "skipped", "skipped", "failed"]
    whys = [line.why for line in lines]
    assert whys[:2] == ["", "AssertionError: Experts differ."]
    assert whys[2] == f"died with status -9; its output is in {out / 'dies-at-once.log'}"
    assert whys[3:5] == ["There is nothing to do.", "needs a GPU"]
    assert whys[5] == f"took longer than 2 s; its output is in {out / 'hangs.log'}"
    assert lines[0].figures == {"device": "cpu", "said": "hello", "third": 1 / 3}
    assert (out / "dies-at-once.log").read_text() == "Last words.\n"


def test_checks_with_a_line_do_not_run_again(out: Path) -> None:
    before = kept_lines(out)
    (out / LINES).write_text(
        "".join(f"{line.model_dump_json()}\n" for line in before if line.name != "skips")
    )
    assert run(out) == 3
    after = kept_lines(out)
    assert [line.name for line in after] == [name for name in NAMES if name != "skips"] + ["skips"]
    assert after[:-1] == [line for line in before if line.name != "skips"]


def test_after_the_limit_none_starts_and_the_running_one_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [Line(name=name, outcome="ok", seconds=1) for name in NAMES[:-1]]
    (tmp_path / LINES).write_text("".join(f"{line.model_dump_json()}\n" for line in kept))
    assert run(tmp_path, limit_s=0.5) == 0
    assert kept_lines(tmp_path) == kept
    assert "Run the same command again for the other checks: hangs." in capsys.readouterr().out
    assert run(tmp_path, limit_s=0, again=True) == 0
    assert "other checks: works; fails; dies: at once;" in capsys.readouterr().out


def test_the_printed_form_of_a_line() -> None:
    line = Line(name="graphs: phi", outcome="ok", seconds=61.23, figures={"tokens": 20, "mode": "FULL"})
    assert str(line) == "ok        61.2 s  graphs: phi: tokens: 20; mode: FULL"
    assert str(Line(name="host", outcome="skipped", why="no", seconds=0)) == "skipped    0.0 s  host: no"
