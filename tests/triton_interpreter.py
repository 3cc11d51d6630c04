"""Triton kernels without a GPU. A conftest.py has to import this before a test imports a kernel."""

import pytest

# Triton chooses its interpreter when kernels are imported. The engines' processes must not inherit this.
with pytest.MonkeyPatch.context() as _environment:
    _environment.setenv("TRITON_INTERPRET", "1")
    import prismoe.kernels.triton.experts
    import prismoe.kernels.triton.layer_rows
    import prismoe.kernels.triton.mixture
    import prismoe.kernels.triton.router  # noqa: F401


@pytest.fixture(autouse=True)
def interpret_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter reads this when a kernel runs."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
