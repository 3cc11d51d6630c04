"""Keeps TF32 out of engines whose float32 is compared with a reference."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

PRECISE_FLOAT32 = {
    "TRITON_F32_DEFAULT": "ieee",  # Triton's products, of vLLM's experts among others
    "NVIDIA_TF32_OVERRIDE": "0",  # cuBLAS and cuDNN
    "VLLM_FLOAT32_MATMUL_PRECISION": "highest",  # vLLM's default: PyTorch's products, and those it compiles
}
"""A process that starts with this environment multiplies float32 as it is.

A GPU's tensor cores would take TF32, with 10 bits behind the point in place of 23. A factor is then off by
up to a two-thousandth: more than a reference's tolerances allow, and enough to turn near ties of experts.
"""


@contextmanager
def precise_float32() -> Iterator[None]:
    """Processes that are started within the block have this environment."""
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
