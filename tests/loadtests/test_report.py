"""The report has the results, as Markdown and as plots that parse."""

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib import colormaps
from matplotlib.colors import to_hex

from prismoe.loadtests.plots import Points, lines, shares
from prismoe.loadtests.report import markdown, table, write_report
from prismoe.loadtests.results import Check, Run, Soak
from tests.loadtests.runs import memory, phase, run


def row(report: str, first: str) -> list[str]:
    """The first table row that starts with this text."""
    line = next(line for line in report.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_phase() -> None:
    report = markdown(run(phase("one-image", images=1)), None)
    assert row(report, "one-image") == ["one-image", "10", "0", "8", "4", "32", "4"]
    assert "| one-image | 10 | 40 | 90 | 10 | 40 | 90 | 10 | 40 | 90 |" in report
    assert "| one-image | 10 | 40 | 2 | 2.75 |" in report
    assert ": sound." in report and "## Against" not in report


def test_errors_and_failed_checks() -> None:
    report = markdown(run(phase("burst", failed=2), checks=(Check(what="requests", left=8, right=10),)), None)
    assert "**not sound**" in report
    assert row(report, "burst")[2] == "2" and "| burst | Bad Gateway | 2 |" in report
    assert "| requests | 8 | 10 | **no** |" in report


def test_two_runs_are_compared_for_equal_scenarios() -> None:
    this = run(phase("one-image", 12, images=1), phase("burst", 5, images=1))
    other = run(phase("one-image", 8, images=1), phase("burst", 5, images=2))
    report = markdown(this, other)
    compared = report.partition("## Against")[2]
    assert row(compared, "one-image")[1] == "1.5" and "| burst |" not in compared


def test_the_files(tmp_path: Path) -> None:
    ramp = [phase(f"ramp-{n}", 2.0 * n, at_once=n) for n in (1, 2, 4)]
    soak = Soak(
        rate=3, bad_requests={"not JSON": Counter({"400": 7})}, unexpected=0, memory=memory(*range(100, 140))
    )
    path = write_report(run(*ramp, soak=soak), None, tmp_path)
    for name in ("ramp", "ramp-latency", "expert-load", "memory"):
        assert f"]({name}.svg)" in path.read_text()
        ElementTree.fromstring((tmp_path / f"{name}.svg").read_text())
    assert "| not JSON | 400: 7 |" in path.read_text()
    assert Run.model_validate_json((tmp_path / "report.json").read_text()).soak == soak


def test_numbers_in_a_table() -> None:
    written = table(["a", "b", "c", "d"], [[1234.5, 0.01234, None, 12345]])
    assert written.splitlines()[-1] == "| 1,234 | 0.0123 | – | 12,345 |"


@pytest.mark.parametrize("points", [[(0, 5), (1, 6), (6, 7)], [("1", 5), ("2", 6), ("7", 7)]])
def test_a_line_goes_through_its_points(points: Points) -> None:
    root = ElementTree.fromstring(lines("t", "x", {"a": points}))
    path = root.find(".//{*}g[@id='a']/{*}path")
    assert path is not None
    (x0, y0), (x1, y1), (x2, y2) = [
        (float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.attrib["d"])
    ]
    named = isinstance(points[0][0], str)
    assert (x2 - x0) / (x1 - x0) == pytest.approx(2 if named else 6)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(2)
    assert {"0", "t", "x", "a"} <= {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}


def test_the_same_data_gives_the_same_plot() -> None:
    assert lines("t", "x", {"a": [(0, 5), (1, 6)]}) == lines("t", "x", {"a": [(0, 5), (1, 6)]})


def test_shares_are_colours() -> None:
    root = ElementTree.fromstring(shares("t", {"phase": [[0, 0.5], [1]]}, ["text", "image"]))
    cells = root.findall(".//{*}g[@id='shares']/{*}path")
    shades = [to_hex(colormaps["Blues"](share)) for share in (0.0, 0.5, 1.0)]
    assert [cell.attrib["style"].split(";")[0] for cell in cells] == [f"fill: {shade}" for shade in shades]
