"""Keeps TF32 out of engines whose float32 is compared with a reference."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

PRECISE_FLOAT32 = {
    "TRITON_F32_DEFAULT": "ieee",  # Triton's products, of vLLM's experts among others
    "NVIDIA_TF32_OVERRIDE": "0",  # cuBLAS and cuDNN
    "VLLM_FLOAT32_MATMUL_PRECISION": "highest",  # vLLM's default: PyTorch's products, and those it compiles
}
"""A process that starts with this environment multiplies in full float32.

A GPU's tensor cores would use TF32, whose fractions have 10 bits instead of 23. A factor then has an error of
up to 1/2000: more than a reference's tolerances allow, and enough to change near ties of experts.
"""


@contextmanager
def precise_float32() -> Iterator[None]:
    """Give this environment to processes that start within the block."""
    before = {name: os.environ.get(name) for name in PRECISE_FLOAT32}
    os.environ.update(PRECISE_FLOAT32)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
