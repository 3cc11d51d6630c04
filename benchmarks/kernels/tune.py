"""Times block sizes of vLLM's Triton experts on this GPU, and writes the tables of sizes that vLLM reads.

Run `python -m prismoe.benchmarks.kernels.tune FOLDER` on an otherwise idle GPU, then serve with
VLLM_TUNED_CONFIG_FOLDER=FOLDER. vLLM ships no tables for MoE-LLaVA's experts. The program was tested with
made-up times; it has not run on a GPU yet.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch
from triton.errors import TritonError
from triton.testing import do_bench_cudagraph

from prismoe.benchmarks.kernels.bench import routing
from prismoe.benchmarks.kernels.bench_gpu import vllm_triton_experts

TOKENS = tuple(2**power for power in range(13))
"""For other numbers of tokens, vLLM uses the entry of the nearest."""
SIZES = {
    "BLOCK_SIZE_M": (16, 32, 64, 128),
    "BLOCK_SIZE_N": (64, 128, 256),
    "BLOCK_SIZE_K": (64, 128),
    "GROUP_SIZE_M": (1, 16),
    "SPLIT_K": (1,),
    "num_warps": (4, 8),
    "num_stages": (3, 4),
}

Config = dict[str, int]
Timer = Callable[[Callable[[], object]], float]


class Widths(NamedTuple):
    """The widths of a checkpoint's experts."""

    hidden: int
    width: int
    is_gated: bool


MODELS = {
    "MoE-LLaVA-Phi2-2.7B": Widths(2560, 10240, is_gated=False),
    "MoE-LLaVA-StableLM-1.6B": Widths(2048, 5632, is_gated=True),
    "MoE-LLaVA-Qwen-1.8B": Widths(2048, 5504, is_gated=True),
}


def candidates(tokens: int, experts: int, widths: Widths) -> list[Config]:
    """vLLM's default, and all combinations whose blocks don't have far more rows than there are tokens."""
    from vllm.model_executor.layers.fused_moe.fused_moe import get_default_config

    default = get_default_config(tokens, experts, widths.width, widths.hidden, experts, None)
    every = (dict(zip(SIZES, sizes, strict=True)) for sizes in product(*SIZES.values()))
    return [default, *(config for config in every if config["BLOCK_SIZE_M"] <= max(16, 2 * tokens))]


def fastest(run: Callable[[], object], configs: Iterable[Config], timer: Timer) -> Config:
    """The configuration with the smallest `timer(run)`, of those that fit this GPU."""
    from vllm.model_executor.layers.fused_moe import override_config

    def measured(config: Config) -> float:
        with override_config(config):
            try:
                return timer(run)
            except (TritonError, RuntimeError):  # this size does not fit the GPU
                return inf

    return min(configs, key=measured)


def tuned(experts: int, widths: Widths, timer: Timer, device: str = "cuda") -> dict[int, Config]:
    """The fastest configuration by number of tokens, which use experts like `routing`'s mixed tokens."""
    hidden, width, is_gated = widths
    w13 = torch.randn(experts, (1 + is_gated) * width, hidden, device=device, dtype=torch.bfloat16)
    w2 = torch.randn(experts, hidden, width, device=device, dtype=torch.bfloat16)
    run = vllm_triton_experts(w13, w2, leaves_out=True)
    table = {}
    for tokens in TOKENS:
        hidden_TD = torch.randn(tokens, hidden, device=device, dtype=torch.bfloat16)
        weights_TA, experts_TA = (part.to(device) for part in routing(tokens, True, experts))
        step = partial(run, hidden_TD, weights_TA, experts_TA)
        table[tokens] = fastest(step, candidates(tokens, experts, widths), timer)
        print(f"{experts} experts of {width}, {tokens:5} tokens: {table[tokens]}", flush=True)
    return table


def write(folder: Path, experts: int, width: int, table: dict[int, Config]) -> None:
    """Write the table under the name that vLLM reads on this GPU for 16-bit experts without quantisation."""
    from vllm.model_executor.layers.fused_moe.fused_moe import get_config_file_name

    text = json.dumps({str(tokens): config for tokens, config in table.items()}, indent=4)
    (folder / get_config_file_name(experts, width, None)).write_text(text + "\n")


def main() -> None:
    """Write a table for each model and number of experts."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example:\n  python -m prismoe.benchmarks.kernels.tune tables --experts 4 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder to write the tables to")
    parser.add_argument(
        "--experts", type=int, nargs="+", default=[4, 8], help="experts in a layer (default: 4 8)"
    )
    parser.add_argument(
        "--tensor-parallel-size",
        type=int,
        default=1,
        help="GPUs that share a layer, as for `prismoe serve` (default: 1)",
    )
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for widths, experts in product(MODELS.values(), arguments.experts):
        if widths.width % arguments.tensor_parallel_size:
            parser.error(
                f"--tensor-parallel-size: give a number that divides the experts' width {widths.width}."
            )
        of_rank = widths._replace(width=widths.width // arguments.tensor_parallel_size)
        write(arguments.folder, experts, of_rank.width, tuned(experts, of_rank, do_bench_cudagraph))


if __name__ == "__main__":
    main()
