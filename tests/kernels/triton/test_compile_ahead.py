"""The Triton kernels compile for GPUs that this machine does not have."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import triton

from prismoe.kernels.triton import experts as triton_experts
from prismoe.kernels.triton import layer_rows as triton_layer_rows
from prismoe.kernels.triton import mixture as triton_mixture
from prismoe.kernels.triton import router as triton_router

CAPABILITIES = ("80", "90", "100")
"""GPUs that Triton compiles for, one for each kind of tensor core."""


def is_launched(name: str, function: Callable[..., None], module: ModuleType) -> bool:
    """Whether this is a kernel.

    A function that writes nothing or is called by others is only a part of one.
    """
    source = inspect.getsource(function)
    is_called = re.search(rf"^ +{name}\(", inspect.getsource(module), re.MULTILINE)
    return ("tl.store(" in source or "tl.atomic_add(" in source) and not is_called


@pytest.mark.slow
def test_every_kernel_builds_for_three_generations() -> None:
    built = subprocess.run(
        [sys.executable, "-m", "prismoe.kernels.triton.compile_ahead", *CAPABILITIES],
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
    header, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in built.stdout.splitlines()
    ]
    assert header == [f"Triton {triton.__version__}", "dtype", *(f"sm_{each}" for each in CAPABILITIES)]
    assert {line[0].strip("`") for line in lines} == kernels
    assert {line[1] for line in lines} == {"any", "fp32", "bf16", "fp16"}
    for name, dtype, *taken in lines:
        for cell in taken:
            registers, shared = cell.split(" / ")  # larger values would be spilled
            assert 0 < int(registers) < 256 and int(shared) <= 99, (name, dtype)
