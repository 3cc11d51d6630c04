"""Imports the kernels for Triton's interpreter before a test imports them."""

import tests.triton_interpreter  # noqa: F401
