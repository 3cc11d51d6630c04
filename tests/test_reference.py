"""The pages in docs/reference match the code. If not, run `make reference`."""

import re
from collections.abc import Callable

import pytest

from prismoe.model_plugins.routing import policies_page
from prismoe.server.access.routes import ROUTES
from prismoe.server.app import routes_page
from prismoe.server.commands import options_page
from tests.paths import REPOSITORY

READ_BY_TESTS = {"PRISMOE_FUZZ_CASES", "PRISMOE_FAKED_GPU"}


@pytest.mark.parametrize(
    ("name", "page"),
    [
        ("options", options_page.page),
        ("routes", routes_page.page),
        ("policies", policies_page.page),
    ],
)
def test_a_page_matches_the_code(name: str, page: Callable[[], str]) -> None:
    made = page()
    assert (REPOSITORY / "docs" / "reference" / f"{name}.md").read_text() == made, "Run `make reference`."


def test_the_routes_are_those_of_the_server() -> None:
    """Except for routes of one model and of the inspector's files, whose paths have names."""
    reported = set(re.findall(r"^\| `([^`]+)`", routes_page.page(), re.M))
    assert reported - {"/v1/models/{name}", "/inspector/", "/inspector/*"} == ROUTES


def test_each_environment_variable_is_listed() -> None:
    rooms = ("server", "model_plugins", "kernels", "training", "benchmarks", "loadtests")
    files = [file for room in rooms for file in (REPOSITORY / room).rglob("*.py")]
    names = {name for file in files for name in re.findall(r"\"(PRISMOE_[A-Z_]+)\"", file.read_text())}
    assert names - READ_BY_TESTS == set(options_page.ENVIRONMENT)
