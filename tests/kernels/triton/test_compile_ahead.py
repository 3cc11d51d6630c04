"""The Triton kernels build for GPUs that are not here."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from prismoe.kernels.triton import experts as triton_experts
from prismoe.kernels.triton import layer_rows as triton_layer_rows
from prismoe.kernels.triton import mixture as triton_mixture
from prismoe.kernels.triton import router as triton_router


def is_launched(name: str, function: Callable[..., None], module: ModuleType) -> bool:
    """Whether it is a kernel; what writes nothing, or is called by name, is a part of others."""
    source = inspect.getsource(function)
    is_called = re.search(rf"^ +{name}\(", inspect.getsource(module), re.MULTILINE)
    return ("tl.store(" in source or "tl.atomic_add(" in source) and not is_called


@pytest.mark.slow
def test_every_kernel_builds_for_three_generations() -> None:
    built = subprocess.run(
        [sys.executable, "-m", "prismoe.kernels.triton.compile_ahead"],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    kernels = {
        name
        for module in (triton_experts, triton_layer_rows, triton_mixture, triton_router)
        for name, value in vars(module).items()
        if type(value).__name__ == "InterpretedFunction" and is_launched(name, value.fn, module)
    }
    lines = [line.split() for line in built.stdout.splitlines()]
    assert {(line[0], line[1]) for line in lines} == {
        (kernel, capability) for kernel in kernels for capability in ("sm_80", "sm_90", "sm_100")
    }
    for name, _, shared, _, _, _, spilled, _ in lines:
        assert (int(shared) <= 99 * 1024, int(spilled)) == (True, 0), name
