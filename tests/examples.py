"""The paths of the examples, and a way to run the notebook."""

import json
from typing import Any

import pytest

from tests.paths import REPOSITORY

EXAMPLES = REPOSITORY / "docs" / "examples"


def code_of_notebook() -> list[str]:
    """The code cells of ltdr_figure.ipynb, which is kept without outputs."""
    cells = json.loads((EXAMPLES / "ltdr_figure.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code)
    return ["".join(cell["source"]) for cell in code]


def run_notebook(cells: list[str]) -> dict[str, Any]:
    """The variables after the notebook's cells ran. Skips the test if nothing can draw."""
    pytest.importorskip("matplotlib").use("agg")
    names: dict[str, Any] = {}
    for cell in cells:
        exec(cell, names)
    return names
