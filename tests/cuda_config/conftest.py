"""Tests of `make test-cuda-config`. They need vLLM's CUDA build, and hide any real GPU."""

import os
from pathlib import Path

import pytest

from tests.cuda_config.page import CAPABILITIES

IS_ASKED_FOR = os.environ.get("PRISMOE_FAKED_GPU") == "1"
collect_ignore_glob = [] if IS_ASKED_FOR else ["test_*.py"]

if IS_ASKED_FOR:
    from tempfile import mkdtemp

    from tests.cuda_config.faked_gpu import fake_gpu

    fake_gpu("9.0", Path(mkdtemp()))


@pytest.fixture(params=CAPABILITIES)
def capability(request: pytest.FixtureRequest) -> str:
    asked: str = request.param
    return asked
