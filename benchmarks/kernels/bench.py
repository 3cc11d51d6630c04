"""Times the ragged experts and their baselines in turns, so that the ratios are fair.

Run `python -m prismoe.benchmarks.kernels.bench [--full] [--json FILE]` on an otherwise idle host. On CPU it
times the plugin's experts and vLLM's; on a host with a GPU it checks and times the Triton kernels.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, silu

from prismoe.kernels.ragged_experts import flat_experts
from prismoe.kernels.routing import top_experts_by_count

EXPERTS = 4
WIDTHS, ALL_WIDTHS = (256, 1024), (256, 512, 1024, 2048)
TOKENS, ALL_TOKENS = (1, 8, 64, 600), (1, 2, 4, 8, 16, 64, 600, 2048)
PREFILL = (torch.bfloat16, 2048, 4608)
"""Eight images of 576 tokens at once, for GPUs only."""
Row = dict[str, Any]
SQUARE = 1024
"""The side of the matrices in a large product."""

Experts = Callable[[Tensor, Tensor, Tensor], Tensor]
Variants = Mapping[str, Callable[[], object]]


def routing(tokens: int, is_mixed: bool, experts: int = EXPERTS) -> tuple[Tensor, Tensor]:
    """`weights_TA` and `experts_TA` as a router returns them, with 2 slots and 2 experts for each token.

    With `is_mixed` there is a slot for each expert: a fifth of the tokens uses all experts, a fifth uses 1,
    and the rest use 2.
    """
    generator = torch.Generator().manual_seed(tokens)
    share_T = torch.rand(tokens, generator=generator)
    count_T = torch.where(share_T < 0.2, experts, torch.where(share_T < 0.4, 1, 2))
    if not is_mixed:
        count_T = torch.full_like(count_T, 2)
    logits_TE = torch.randn(tokens, experts, generator=generator)
    slots = experts if is_mixed else 2
    experts_TA, weights_TA = top_experts_by_count(logits_TE, count_T, slots, renormalize=True)
    return weights_TA.contiguous(), experts_TA.int().contiguous()


def interleaved(variants: Variants, seconds: float) -> dict[str, float]:
    """The median seconds of each variant. They run in turns for `seconds`, and at least five times.

    The order changes with each round, since a variant finds the caches filled by the one before it.
    """
    shuffle, order = random.Random(0).shuffle, list(variants)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            variants[name]()
            times[name].append(time.perf_counter() - start)
    return {name: median(each) for name, each in times.items()}


def floor_seconds(
    weights_TA: Tensor, experts_TA: Tensor, w13: Tensor, measure: Callable[[Variants], dict[str, float]]
) -> float:
    """The least possible seconds: for the operations as one large product, or for reading the weights."""
    pairs = int(weights_TA.count_nonzero())
    touched = len(experts_TA[weights_TA != 0].unique())
    expert = w13[0].numel() * 3 // 2  # with the down projection
    square = torch.randn(SQUARE, SQUARE, device=w13.device).to(w13.dtype)
    weights = w13.new_empty(touched * expert)
    copy = torch.empty_like(weights)
    measured = measure({"product": lambda: square @ square, "copy": lambda: copy.copy_(weights)})
    operations = pairs * 2 * expert / (2 * SQUARE**3) * measured["product"]
    return max(operations, measured["copy"] / 2)  # a copy reads and writes


def vllm_experts(w13: Tensor, w2: Tensor) -> Experts:
    """vLLM's CPU kernel, which uses the same number of experts for each token."""
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight

    isa = "amx" if w13.dtype == torch.bfloat16 and torch.cpu._init_amx() else "vec"
    packed_w13, packed_w2 = cpu_prepack_moe_weight(w13, isa), cpu_prepack_moe_weight(w2, isa)

    def experts(hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> Tensor:
        output_TD = torch.empty_like(hidden_TD)
        cpu_fused_moe(
            output_TD, hidden_TD, packed_w13, packed_w2, None, None, weights_TA, experts_TA, "silu", isa
        )
        return output_TD

    return experts


def loop_over_experts(
    hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor, w13: Tensor, w2: Tensor
) -> Tensor:
    """The simplest way: a loop over the experts, each with its tokens."""
    output_TD = torch.zeros_like(hidden_TD)
    for expert in range(len(w13)):
        token_R, slot_R = ((experts_TA == expert) & (weights_TA != 0)).nonzero(as_tuple=True)
        gate, up = (hidden_TD[token_R] @ w13[expert].T).chunk(2, dim=-1)
        rows = (silu(gate) * up) @ w2[expert].T
        output_TD.index_add_(0, token_R, rows * weights_TA[token_R, slot_R, None].to(rows.dtype))
    return output_TD


def sort_and_grouped_product(
    hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor, w13: Tensor, w2: Tensor
) -> Tensor:
    """The slots sorted by expert, unused ones last, and one grouped product of PyTorch for all experts."""
    expert_P = torch.where(weights_TA != 0, experts_TA, len(w13)).flatten()
    order_P = expert_P.argsort(stable=True)
    token_P = order_P // weights_TA.shape[1]
    each_E = torch.arange(len(w13), device=expert_P.device, dtype=expert_P.dtype)
    ends_E = torch.searchsorted(expert_P[order_P], each_E, right=True, out_int32=True)
    gate, up = grouped_mm(hidden_TD[token_P], w13.transpose(1, 2), offs=ends_E).chunk(2, dim=-1)
    output_PD = grouped_mm(silu(gate) * up, w2.transpose(1, 2), offs=ends_E)
    weight_P1 = weights_TA.flatten()[order_P, None].to(output_PD.dtype)
    output_PD = torch.where(
        weight_P1 != 0, output_PD * weight_P1, 0
    )  # the rows of unused slots are never written
    return torch.zeros_like(hidden_TD).index_add_(0, token_P, output_PD)


def experts_on_cpu(dtype: torch.dtype, hidden: int, tokens: int, seconds: float) -> Row:
    """One row of the table: the times over that of vLLM's kernel at k = 2, and the ratio of experts used."""
    width = 4 * hidden
    w13 = (torch.randn(EXPERTS, 2 * width, hidden) * hidden**-0.5).to(dtype)
    w2 = (torch.randn(EXPERTS, hidden, width) * width**-0.5).to(dtype)
    fixed = vllm_experts(w13, w2)
    hidden_TD = torch.randn(tokens, hidden).to(dtype)
    weights_TA, experts_TA = routing(tokens, is_mixed=True)
    two = routing(tokens, is_mixed=False)
    variants: dict[str, Callable[[], object]] = {
        "fixed k = 2": lambda: fixed(hidden_TD, *two),
        "ragged, all k = 2": lambda: flat_experts(hidden_TD, *two, fixed),
        "ragged": lambda: flat_experts(hidden_TD, weights_TA, experts_TA, fixed),
        "padding": lambda: fixed(hidden_TD, weights_TA, experts_TA),
        "loop": lambda: loop_over_experts(hidden_TD, weights_TA, experts_TA, w13, w2),
        "grouped_mm": lambda: sort_and_grouped_product(hidden_TD, weights_TA, experts_TA, w13, w2),
    }
    measured = interleaved(variants, seconds)
    base = measured.pop("fixed k = 2")
    floor = floor_seconds(weights_TA, experts_TA, w13, partial(interleaved, seconds=0.2))
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "hidden": hidden,
        "tokens": tokens,
        "experts used": int(weights_TA.count_nonzero()) / (2 * tokens),
        **{name: value / base for name, value in measured.items()},
        "floor": floor / base,
    }


def print_table(rows: list[Row]) -> None:
    """Print the rows as a table with aligned columns."""
    cells = [list(rows[0])] + [
        [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), flush=True)
    print()


def main() -> None:
    """Print the tables, and write them as JSON with --json."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example:\n  python -m prismoe.benchmarks.kernels.bench --json figures.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--full", action="store_true", help="measure all widths and numbers of tokens; takes ten minutes"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    grid = [
        (dtype, hidden, tokens)
        for dtype in (torch.float32, torch.bfloat16)
        for hidden in (ALL_WIDTHS if arguments.full else WIDTHS)
        for tokens in (ALL_TOKENS if arguments.full else TOKENS)
    ]
    if torch.cuda.is_available():
        from prismoe.benchmarks.kernels.bench_gpu import experts_on_gpu, mixture_on_gpu, router_on_gpu

        print(f"On {torch.cuda.get_device_name()}:\n")
        results = {
            "experts on GPU": [experts_on_gpu(*case) for case in (*grid, PREFILL)],
            "many experts on GPU": [
                experts_on_gpu(torch.bfloat16, 2048, tokens, experts=64, width=1408) for tokens in TOKENS
            ],
            "router on GPU": [router_on_gpu(tokens) for tokens in (1, 64, 4096)],
            "mixture on GPU": [mixture_on_gpu(tokens) for tokens in (1, 64, 4096)],
        }
    else:
        print("Experts on CPU, times as ratios to vLLM's kernel at k = 2 for every token:\n")
        results = {"experts on CPU": [experts_on_cpu(*case, seconds=0.5) for case in grid]}
    for rows in results.values():
        print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
