"""Selects vLLM's V2 runner in each process that has this folder on its PYTHONPATH, when Python starts.

On CPU, V2 needs a Triton with a backend called "cpu". It runs nothing: Triton's interpreter runs the kernels.
"""

import os
from types import SimpleNamespace

os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1")
from triton.backends import backends


class NoDriver:
    """Keeps Triton from choosing this backend."""

    @staticmethod
    def is_active() -> bool:
        return False


backends["cpu"] = SimpleNamespace(driver=NoDriver)
