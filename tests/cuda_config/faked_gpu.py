"""Simulates a GPU of a given compute capability for vLLM's CUDA build on a machine without one.

vLLM's platform reports the GPU, but tensors are on the CPU. No kernel runs.
"""

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Any

STUB = Path(__file__).with_name("libcuda.c")
MEMORY_BYTES = 80 * 2**30
COMPUTE_UNITS = 132


def fake_gpu(capability: str, folder: Path) -> None:
    """Make this process believe that it has such a GPU ("9.0" is Hopper). Call this before importing vLLM."""
    os.environ.update(
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
        VLLM_LOGGING_LEVEL="WARNING",
        VLLM_DISABLE_SHARED_EXPERTS_STREAM="1",  # without a driver there are no streams
    )
    load_stub(folder)
    set_platform(capability)


def load_stub(folder: Path) -> None:
    """Compile the stub of libcuda in `folder`, and load it, so that libraries linked to libcuda find it."""
    library = folder / "libcuda.so.1"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(STUB)], check=True
    )
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def set_platform(capability: str) -> None:
    """Make vLLM use its CUDA platform with one GPU of this capability."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # so that Triton's driver need not be active
    import torch
    import vllm.platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class FakedGPU(NonNvmlCudaPlatform):
        """The properties of a GPU that vLLM reads, without a GPU."""

        @classmethod
        def get_device_capability(  # type: ignore[override]  # vLLM's is cached
            cls, device_id: int = 0
        ) -> DeviceCapability:
            return DeviceCapability(*map(int, capability.split(".")))

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return f"A GPU of compute capability {capability} that is not there"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return MEMORY_BYTES

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return COMPUTE_UNITS

        @classmethod
        def device_count(cls) -> int:
            return 1

    platforms: Any = vllm.platforms
    platforms._current_platform = FakedGPU()
    torch.accelerator.empty_cache = lambda: None
    torch.accelerator.max_memory_allocated = lambda *device: 0
