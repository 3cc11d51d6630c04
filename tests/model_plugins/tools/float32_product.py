"""Prints Triton's code for an A100 for a product without a precision, like those of vLLM's experts."""

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def _product(a_ptr, b_ptr, product_ptr):
    at = tl.arange(0, 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(product_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


if __name__ == "__main__":
    source = ASTSource(_product, dict.fromkeys(_product.arg_names, "*fp32"), {})
    print(triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"])
