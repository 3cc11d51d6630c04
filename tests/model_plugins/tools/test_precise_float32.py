"""Results that are compared with a float32 reference are computed in float32, not in TF32."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from prismoe.model_plugins.tools.check import engine
from prismoe.model_plugins.tools.checkpoint_facts import checkpoint_facts
from prismoe.model_plugins.tools.precise_float32 import PRECISE_FLOAT32
from tests.model_plugins.engine import PHI


def test_check_starts_its_engine_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_FLOAT32_MATMUL_PRECISION", "medium")
    monkeypatch.delenv("TRITON_F32_DEFAULT", raising=False)
    environments: list[Mapping[str, str]] = []

    @contextmanager
    def engine_that_is_not_started(*_: Any) -> Iterator[None]:
        environments.append(dict(os.environ))
        yield

    monkeypatch.setattr(engine, "small_engine", engine_that_is_not_started)
    with engine.check_engine(checkpoint_facts(PHI), "float32", None):
        pass
    assert PRECISE_FLOAT32.items() <= environments[0].items()
    assert os.environ["VLLM_FLOAT32_MATMUL_PRECISION"] == "medium"
    assert "TRITON_F32_DEFAULT" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("is_precise", [False, True])
def test_triton_does_not_use_tf32_for_a_product(is_precise: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= PRECISE_FLOAT32 if is_precise else {}
    command = [sys.executable, "-m", "tests.model_plugins.tools.float32_product"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (".tf32" in made.stdout) is not is_precise
