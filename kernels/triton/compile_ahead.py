"""Compiles every Triton kernel to machine code for several kinds of GPUs, without needing a GPU.

Run: `python -m prismoe.kernels.triton.compile_ahead`, optionally with compute capabilities (`80 90`). It
prints the table of docs/kernels.md for the installed Triton, and ends with an error if a kernel does not
build.
"""

import argparse
import math
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.fused_rule import ByEntropy, ByImportance, ByModality, ByTail, FusedRule
from prismoe.kernels.triton import experts as triton_experts
from prismoe.kernels.triton import layer_rows as triton_layer_rows
from prismoe.kernels.triton import mixture as triton_mixture
from prismoe.kernels.triton import router as triton_router

CAPABILITIES = (80, 89, 90, 100, 120)
HALF_PRECISION_TILES = [triton_experts.FEW_ROWS_TILE, triton_experts.TILE]
TILES = {
    "fp32": [triton_experts.FLOAT32_TILE],
    "bf16": HALF_PRECISION_TILES,
    "fp16": HALF_PRECISION_TILES,
}
LAUNCH = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Source:
    """A kernel in one of its forms, and how it is launched."""

    name: str
    dtype: str
    """The model's dtype, where the kernel has a form for each."""
    kernel: ASTSource
    launch: Mapping[str, int]


class Resources(NamedTuple):
    """The resources that a kernel uses on a GPU."""

    registers: int
    """Registers of a thread."""
    shared: int
    """Bytes of a program's shared memory."""
    spilled: int
    """Bytes of a thread's values that did not fit into registers."""

    def __str__(self) -> str:
        spilled = f", {self.spilled} spilled" if self.spilled else ""
        return f"{self.registers} / {math.ceil(self.shared / 1024)}{spilled}"


def sources() -> Iterator[Source]:
    """Every kernel in each form that serving calls."""
    yield from map(_router_source, rules(4))
    for experts in (4, 64):
        by_mean = ByTail(2, 1, experts, threshold=None, selects_head=False)
        confidence = Confidence(torch.empty(1, experts))
        yield _router_source(FusedRule(confidence, by_mean, experts, renormalize=False))
    for confident in ("", "logits fp32, scores fp32, to_logits fp32, to_scores fp32, "):
        pointers = confident + "experts i32, weights fp32, count i32, tail i8, sampled i64, to_experts i32, "
        pointers += "to_weights fp32, to_count i32, to_tail i8"
        yield _source(triton_layer_rows._write, pointers, triton_layer_rows.constants(8, 128))
    for tokens in (1, 4096):
        yield _source(
            triton_mixture._best_experts,
            "latent fp32, log_mixing fp32, means fp32, log_variances fp32, experts i32, weights fp32",
            {"K": 2, "C": 64, "M": 16, "L": 32, "BLOCK_K": 2, **triton_mixture.tiles(tokens, 64, 32)},
        )
    for dtype, tiles in TILES.items():
        for tile in tiles:
            down = {**tile, "BLOCK_E": 64}
            for gated in (True, False):
                up = {**down, "BLOCK_N": tile["BLOCK_N"] // (1 + gated)}
                yield _source(
                    triton_experts._up,
                    f"hidden {dtype}, w13 {dtype}, b13 {dtype}, pair i64, ends i32, output {dtype}",
                    {"IS_GATED": gated, "HAS_BIAS": not gated, "IS_GELU": not gated, **up},
                    dtype=dtype,
                )
            yield _source(
                triton_experts._down,
                f"hidden {dtype}, w2 {dtype}, b2 {dtype}, ends i32, output {dtype}",
                {"HAS_BIAS": True, **down},
                dtype=dtype,
            )
        yield _source(
            triton_experts._sum,
            f"pairs {dtype}, row i64, weights fp32, output {dtype}",
            {"BLOCK_N": 128},
            dtype=dtype,
        )


def rules(experts: int) -> Iterator[FusedRule]:
    """One rule of each kind, with and without shared experts, scores, and thresholds in memory."""
    logits_TE = torch.empty(1, experts)
    confidence, asked_T2 = Confidence(logits_TE), torch.empty(1, 2)
    for uses in (
        ByModality(2, 1),
        ByTail(2, 1, experts, None, False, asked_T2),
        ByTail(2, 1, experts, 0.1, True, asked_T2),
        ByTail(2, 1, experts, torch.tensor(0.1), True, asked_T2),
        ByEntropy(1, 0.0, 1.0),
        ByEntropy(1, torch.tensor(0.0), torch.tensor(1.0)),
        ByImportance(1, 1.0, 1.0, 0.1, 0.2),
        ByImportance(1, 1.0, 1.0, torch.tensor(0.1), torch.tensor(0.2)),
    ):
        yield FusedRule(confidence, uses, experts, renormalize=True)
    yield FusedRule(confidence, ByModality(2, 2), 2, renormalize=True, scores_TE=logits_TE)
    yield FusedRule(confidence, ByModality(1, 1), 1, renormalize=False, shared=2)


def _router_source(rule: FusedRule) -> Source:
    settings = triton_router.settings(rule)
    constants = {name: value for name, value in settings.items() if name.isupper()}
    pointers = "logits fp32, segment i64, experts i32, weights fp32, count i32"
    if rule.scores_TE is not None:
        pointers += ", scores fp32"
    if isinstance(rule.uses, ByTail):
        pointers += ", asked i32, tail i8"
    constants |= triton_router.tiles(rule.confidence.logits_TE.shape[1], rule.slots)
    numbers = {name: value for name, value in settings.items() if name not in constants}
    in_memory = {name for name, value in numbers.items() if isinstance(value, torch.Tensor)}
    return _source(triton_router._route, pointers, constants, numbers.keys() - in_memory, in_memory)


def _source(
    kernel: Any,
    pointers: str,
    constants: Mapping[str, Any],
    floats: Iterable[str] = (),
    floats_in_memory: Iterable[str] = (),
    dtype: str = "",
) -> Source:
    """Make the source of a kernel in one form.

    `pointers` names the types behind the kernel's pointers; pointers not named are None, and other arguments
    are int32. Pointers and widths are multiples of 16, as in serving: without that no load is asynchronous.
    """
    types = {f"{name}_ptr": f"*{dtype}" for name, dtype in (pair.split() for pair in pointers.split(", "))}
    types |= dict.fromkeys(floats, "fp32") | dict.fromkeys(floats_in_memory, "*fp32")
    absent = [name for name in kernel.arg_names if name.endswith("_ptr") and name not in types]
    constants = {**constants, **dict.fromkeys(absent)}
    launch = {name: value for name, value in constants.items() if name in LAUNCH}
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names
    }
    place = kernel.arg_names.index
    constexprs = {(place(name),): value for name, value in constants.items() if name not in LAUNCH}
    aligned = [name for name in signature if (name in types and name not in floats) or name in ("D", "F")]
    divisible = {(place(name),): [["tt.divisibility", 16]] for name in aligned}
    return Source(kernel.fn.__name__, dtype, ASTSource(kernel, signature, constexprs, divisible), launch)


def resources(source: Source, capability: int) -> Resources:
    """The resources that a kernel uses on a GPU of this compute capability (90 is 9.0)."""
    compiled = triton.compile(
        source.kernel, target=GPUTarget("cuda", capability, 32), options=dict(source.launch)
    )
    registers, stack = registers_and_stack(compiled.asm["cubin"])
    return Resources(registers, compiled.metadata.shared, stack)


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """A thread's registers, and the bytes that did not fit into them."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[-1]
    return int(registers), int(stack)


def table(capabilities: Sequence[int]) -> Iterator[str]:
    """The lines of a Markdown table: for each kernel and dtype, the most that any of its forms uses."""
    forms: dict[tuple[str, str], list[Source]] = {}
    for source in sources():
        forms.setdefault((source.name, source.dtype), []).append(source)
    columns = [f"Triton {triton.__version__}", "dtype", *(f"sm_{capability}" for capability in capabilities)]
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for (name, dtype), kernels in forms.items():
        most = [
            Resources(*map(max, zip(*(resources(kernel, capability) for kernel in kernels), strict=True)))
            for capability in capabilities
        ]
        yield f"| {' | '.join([f'`{name}`', dtype or 'any', *map(str, most)])} |"


def main() -> None:
    """Compile every kernel, and print the resources that each uses."""
    parser = argparse.ArgumentParser(description="Compile every Triton kernel, without a GPU.")
    parser.add_argument("capability", nargs="*", type=int, default=CAPABILITIES, help="90 is 9.0")
    for line in table(parser.parse_args().capability):
        print(line, flush=True)


if __name__ == "__main__":
    main()
