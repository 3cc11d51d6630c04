"""Python runs this first in a process that has this folder on its PYTHONPATH: vLLM's runner is V2 there.

On CPU, V2 wants a Triton with a backend called "cpu". None runs here: Triton's interpreter runs the kernels.
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
