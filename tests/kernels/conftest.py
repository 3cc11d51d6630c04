"""Triton's interpreter, in the tests of kernels only."""

import pytest


@pytest.fixture(autouse=True)
def interpret_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/conftest.py imports the kernels for the interpreter, which looks at this when it runs."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
