"""Compiles every Triton kernel to machine code for GPUs that need not be here.

Run: `python -m prismoe.kernels.compile_ahead`. It ends with an error if a kernel does not build.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from prismoe.kernels import triton_experts, triton_router

CAPABILITIES = (80, 90, 100)
TILES = {
    "BLOCK_R": triton_experts.BLOCK_R,
    "BLOCK_N": triton_experts.BLOCK_N,
    "BLOCK_K": triton_experts.BLOCK_K,
}


def sources() -> Iterator[tuple[str, ASTSource]]:
    """Each kernel as it is called, with its name."""
    yield _source(
        triton_router._probabilities,
        "logits fp32, segment i64, probs fp32, rpv fp32, sums fp64, sizes i32",
        {"BLOCK_T": triton_router.BLOCK_T, "BLOCK_E": 4, "BLOCK_S": triton_router.BLOCK_S},
    )
    yield _source(
        triton_router._decide,
        "probs fp32, rpv fp32, segment i64, sums fp64, sizes i32, experts i32, weights fp32, load i64",
        {
            "DROP_UNUSED": True,
            "RENORMALIZE": True,
            "A": 4,
            "BLOCK_T": triton_router.BLOCK_T,
            "BLOCK_E": 4,
            **triton_router.COUNTERS,
        },
    )
    for dtype in ("fp32", "bf16"):
        for gated in (True, False):
            yield _source(
                triton_experts._up,
                f"hidden {dtype}, w13 {dtype}, b13 {dtype}, pair i64, ends i32, output {dtype}",
                {"IS_GATED": gated, "HAS_BIAS": not gated, "IS_GELU": not gated, **TILES},
            )
        yield _source(
            triton_experts._down,
            f"hidden {dtype}, w2 {dtype}, b2 {dtype}, ends i32, output {dtype}",
            {"HAS_BIAS": True, **TILES},
        )
        yield _source(
            triton_experts._sum, f"pairs {dtype}, row i64, weights fp32, output {dtype}", {"BLOCK_N": 128}
        )


def _source(kernel: Any, pointers: str, constants: Mapping[str, Any]) -> tuple[str, ASTSource]:
    """`pointers` names the types behind the kernel's pointers; its other arguments are int32."""
    types = {f"{name}_ptr": f"*{dtype}" for name, dtype in (pair.split() for pair in pointers.split(", "))}
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names
    }
    constexprs = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return kernel.fn.__name__, ASTSource(kernel, signature, constexprs)


def main() -> None:
    """Compile them all, and print the size of each."""
    for name, source in sources():
        for capability in CAPABILITIES:
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            print(f"{name:16} sm_{capability:<4} {len(compiled.asm['cubin']):7} bytes", flush=True)


if __name__ == "__main__":
    main()
