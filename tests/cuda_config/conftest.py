"""These tests need vLLM's CUDA build, which `make test-cuda-config` installs; other runs pass them by."""

from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

CAPABILITIES = ("8.0", "9.0", "10.0", "12.0")
IS_CUDA_BUILD = "vllm" in packages_distributions().get("vllm", ())
collect_ignore_glob = [] if IS_CUDA_BUILD else ["test_*.py"]

if IS_CUDA_BUILD:
    from tempfile import mkdtemp

    from tests.cuda_config.faked_gpu import fake_gpu

    fake_gpu("9.0", Path(mkdtemp()))


@pytest.fixture(params=CAPABILITIES)
def capability(request: pytest.FixtureRequest) -> str:
    """Of Ampere, Hopper, and Blackwell in data centres and in workstations."""
    asked: str = request.param
    return asked
