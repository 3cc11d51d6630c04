"""Every test here runs kernels in Triton's interpreter."""

from tests.triton_interpreter import interpret_triton  # noqa: F401
