"""Settings for every vLLM process of the tests, and the markers for the needs of a test."""

import os
import sys
from typing import Any

import pytest

from tests.paths import REPOSITORY

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ALLOW_INSECURE_SERIALIZATION="1",  # lets a test run its own function in a worker
    # The models are tiny, and tests run in parallel: with threads, each operation would wait for others.
    OMP_NUM_THREADS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
)

MARKER_OF_FIXTURE = {"server": "server", "watched": "server", "browser": "browser"}
ENGINES = REPOSITORY / "tests" / "model_plugins" / "engines"
NEEDS = {"engine", "server", "browser", "network_namespaces", "docker", "prometheus", "slow"}
LIMIT_WITHOUT_NEEDS_S = 300
LIMIT_WITH_BROWSER_S = 3000
"""Browser tests wait for Docker tests (`network`)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their fixtures and their folder.

    A test without a marker gets less time. A module that starts engines or servers itself sets `pytestmark`.
    """
    for item in items:
        for fixture in MARKER_OF_FIXTURE.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(MARKER_OF_FIXTURE[fixture])
        if ENGINES in item.path.parents:
            item.add_marker("engine")
        marked = {marker.name for marker in item.iter_markers()}
        if not marked & {*NEEDS, "timeout"}:
            item.add_marker(pytest.mark.timeout(LIMIT_WITHOUT_NEEDS_S))
        if "browser" in marked:
            item.add_marker(pytest.mark.timeout(LIMIT_WITH_BROWSER_S))


def pytest_runtest_setup() -> None:
    """Make vLLM and numba's LLVM library compatible.

    vLLM looks at each object of every module, and numba's LLVM library makes a function of any name.
    """
    ffi: Any = sys.modules.get("llvmlite.binding.ffi")
    if ffi is None or hasattr(type(ffi.lib), "own_getattr"):
        return
    kind = type(ffi.lib)
    own = kind.__getattr__

    def get(library: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return own(library, name)

    kind.own_getattr, kind.__getattr__ = own, get
