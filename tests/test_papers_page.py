"""The names in docs/papers.md exist, and each row has contents."""

import re

import pytest

from prismoe.training.comparison.contenders import ROUTERS
from tests.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "papers.md").read_text()
MEASURED = (REPOSITORY / "docs" / "router-comparison.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| ---", "| in the "))
]
ROUTER_NAMES = re.compile(r"rows? (`[^`]+`(?: and `[^`]+`)*)")


def routers(text: str) -> list[str]:
    """The names in the rows of the comparison."""
    return [name for names in ROUTER_NAMES.findall(text) for name in re.findall(r"`([^`]+)`", names)]


def symbols(text: str) -> list[tuple[str, str]]:
    """The files, and the symbols in them that are named."""
    return re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", text)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_each_row_has_a_place_or_a_reason(row: list[str]) -> None:
    paper, here = row
    assert paper
    assert symbols(here) or routers(here) or "](" in here or "not here, because" in here


def test_each_file_and_symbol_exists() -> None:
    named = symbols(PAGE)
    assert len(named) > 60
    for path, name in named:
        text = (REPOSITORY / path).read_text()
        assert not name or re.search(rf"^ *(def |class )?{name}\b *[(:=\[]", text, re.M), (path, name)


def test_each_row_of_the_comparison_exists_with_its_measurement() -> None:
    for _, here in ROWS:
        for part in here.split("; "):
            for name in routers(part):
                assert name in ROUTERS
                is_measured = f"| `{name}` |" in MEASURED or f"| `{name}`* |" in MEASURED
                if "measured" in part and "--steps" not in part:
                    assert is_measured == ("not measured yet" not in part), name


def test_each_trained_router_belongs_to_a_paper() -> None:
    assert set(ROUTERS) == set(routers(PAGE)) | {"entropy", "dual_threshold"}
