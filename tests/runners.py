"""vLLM's two model runners. Every GPU has V2; CPUs have V1, and V2 by Triton's interpreter, which is slow."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest

from tests.paths import REPOSITORY

Runner = Literal["v1", "v2"]
V2_HOOK = REPOSITORY / "tests" / "v2_runner"


def runner_environment(runner: Runner) -> dict[str, str]:
    """The environment variables of a process with this runner."""
    if runner == "v1":
        return {}
    path = [str(V2_HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"VLLM_USE_V2_MODEL_RUNNER": "1", "PYTHONPATH": os.pathsep.join(path)}


@contextmanager
def started_with(runner: Runner) -> Iterator[None]:
    """Processes that are started in the block have this runner."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in runner_environment(runner).items():
            environment.setenv(name, value)
        if runner == "v2":
            # This process only makes the configuration. The other processes have a suitable Triton.
            environment.setattr("vllm.config.vllm.HAS_TRITON", True)
        yield
