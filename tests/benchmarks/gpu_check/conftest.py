"""The checks' kernels run in Triton's interpreter."""

from tests.triton_interpreter import interpret_triton  # noqa: F401
