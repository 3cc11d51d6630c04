"""Times the ragged experts against their baselines, interleaved in one run so that the ratios mean something.

Run: `python -m prismoe.kernels.bench [--full] [--json FILE]`, on a host with nothing else to do. On CPU it
times what the plugin runs; on a host with a GPU it also checks and times the Triton kernels. vLLM is only the
baseline.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from prismoe.kernels.ragged_experts import flat_experts
from prismoe.kernels.routing import ranked_experts, use_first

EXPERTS = SLOTS = 4
WIDTHS, ALL_WIDTHS = (256, 1024), (256, 512, 1024, 2048)
TOKENS, ALL_TOKENS = (1, 8, 64, 600), (1, 2, 4, 8, 16, 64, 600, 2048)
Row = dict[str, Any]
Experts = Callable[[Tensor, Tensor, Tensor], Tensor]


def routing(tokens: int, is_mixed: bool) -> tuple[Tensor, Tensor]:
    """`weights_TA` and `experts_TA` as a router gives them, with 2 slots and experts for each token.

    Mixed, there are 4 slots; a fifth of the tokens uses 4 experts, a fifth 1 and the rest 2.
    """
    generator = torch.Generator().manual_seed(tokens)
    share_T = torch.rand(tokens, generator=generator)
    count_T = torch.where(share_T < 0.2, 4, torch.where(share_T < 0.4, 1, 2))
    probs_TE = torch.randn(tokens, EXPERTS, generator=generator).softmax(-1)
    experts_TA, weights_TA = ranked_experts(probs_TE, SLOTS if is_mixed else 2)
    if not is_mixed:
        count_T = torch.full_like(count_T, 2)
    experts_TA, weights_TA = use_first(experts_TA, weights_TA, count_T, renormalize=True)
    return weights_TA.contiguous(), experts_TA.int().contiguous()


def interleaved(variants: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median seconds of each, run in turns for `seconds` or five times, whichever is longer."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: median(each) for name, each in times.items()}


def floor_seconds(dtype: torch.dtype, pairs: int, experts: int, hidden: int, width: int) -> float:
    """What the operations, or the weights' bytes, take at the speed of a large product or a large copy."""
    square = torch.randn(1024, 1024).to(dtype)
    weights = torch.empty(experts * 3 * hidden * width, dtype=dtype)
    copy = torch.empty_like(weights)
    measured = interleaved({"product": lambda: square @ square, "copy": lambda: copy.copy_(weights)}, 0.2)
    operations = pairs * 6 * hidden * width / (2 * 1024**3) * measured["product"]
    return max(operations, measured["copy"] / 2)  # a copy reads and writes


def vllm_experts(w13: Tensor, w2: Tensor) -> Experts:
    """vLLM's CPU kernel, which takes the same number of experts for each token."""
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
    """What one would write first: for each expert, its tokens."""
    output_TD = torch.zeros_like(hidden_TD)
    for expert in range(len(w13)):
        token_R, slot_R = ((experts_TA == expert) & (weights_TA != 0)).nonzero(as_tuple=True)
        gate, up = (hidden_TD[token_R] @ w13[expert].T).chunk(2, dim=-1)
        rows = (torch.nn.functional.silu(gate) * up) @ w2[expert].T
        output_TD.index_add_(0, token_R, rows * weights_TA[token_R, slot_R, None].to(rows.dtype))
    return output_TD


def experts_on_cpu(dtype: torch.dtype, hidden: int, tokens: int, seconds: float) -> Row:
    """One row of the table: ratios to vLLM's kernel at k = 2, beside the ratio of the experts used."""
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
    }
    measured = interleaved(variants, seconds)
    pairs = int(weights_TA.count_nonzero())
    touched = len(experts_TA[weights_TA != 0].unique())
    base = measured.pop("fixed k = 2")
    floor = floor_seconds(dtype, pairs, touched, hidden, width)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "hidden": hidden,
        "tokens": tokens,
        "experts used": pairs / (2 * tokens),
        **{name: value / base for name, value in measured.items()},
        "floor": floor / base,
    }


def experts_on_gpu(dtype: torch.dtype, hidden: int, tokens: int) -> Row:
    """Checks the grouped product against float64, and gives its time beside a loop's and a padded run's."""
    from triton.testing import do_bench

    from prismoe.kernels.triton_experts import grouped_experts

    width = 4 * hidden
    w13 = (torch.randn(EXPERTS, 2 * width, hidden, device="cuda") * hidden**-0.5).to(dtype)
    w2 = (torch.randn(EXPERTS, hidden, width, device="cuda") * width**-0.5).to(dtype)
    hidden_TD = torch.randn(tokens, hidden, device="cuda").to(dtype)
    weights_TA, experts_TA = (each.cuda() for each in routing(tokens, is_mixed=True))
    all_used_TA = weights_TA.clamp(min=1e-6)

    def grouped(weights_TA: Tensor) -> Tensor:
        most_pairs = weights_TA.numel()
        return grouped_experts(hidden_TD, weights_TA, experts_TA, w13, w2, None, None, "silu", most_pairs)

    expected = loop_over_experts(hidden_TD.double(), weights_TA, experts_TA, w13.double(), w2.double())
    torch.testing.assert_close(grouped(weights_TA).double(), expected, atol=2e-2, rtol=2e-2)
    measured = {
        "ragged": do_bench(lambda: grouped(weights_TA)),
        "padding": do_bench(lambda: grouped(all_used_TA)),
        "loop": do_bench(lambda: loop_over_experts(hidden_TD, weights_TA, experts_TA, w13, w2)),
    }
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "hidden": hidden,
        "tokens": tokens,
        **{f"{name}, ms": value for name, value in measured.items()},
    }


def router_on_gpu(tokens: int) -> Row:
    """Checks the fused router against the plain one, and times both."""
    from triton.testing import do_bench_cudagraph

    from prismoe.kernels.expert_load import empty_load
    from prismoe.kernels.routing import router_probabilities, tail_tokens, top_experts
    from prismoe.kernels.triton_router import ltdr_router

    logits_TE = torch.randn(tokens, EXPERTS, device="cuda")
    segment_T = torch.zeros(tokens, dtype=torch.int64, device="cuda")
    load_MC = empty_load(EXPERTS).cuda()

    def plain() -> tuple[Tensor, Tensor]:
        probs_TE = router_probabilities(logits_TE)
        count_T = torch.where(tail_tokens(probs_TE, segment_T), SLOTS, 2)
        return top_experts(probs_TE, count_T, SLOTS, renormalize=True)

    def fused() -> tuple[Tensor, Tensor]:
        return ltdr_router(logits_TE, segment_T, load_MC, 1, 2, SLOTS, renormalize=True)

    torch.testing.assert_close(fused()[0].long(), plain()[0])
    return {
        "tokens": tokens,
        "fused, µs": 1000 * do_bench_cudagraph(fused),
        "plain, µs": 1000 * do_bench_cudagraph(plain),
    }


def print_table(rows: list[Row]) -> None:
    """The rows, aligned, under their names."""
    cells = [list(rows[0])] + [
        [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), flush=True)
    print()


def main() -> None:
    """Print the tables, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="all widths and numbers of tokens (an hour)")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    grid = [
        (dtype, hidden, tokens)
        for dtype in (torch.float32, torch.bfloat16)
        for hidden in (ALL_WIDTHS if arguments.full else WIDTHS)
        for tokens in (ALL_TOKENS if arguments.full else TOKENS)
    ]
    print("Experts on CPU, times as ratios to vLLM's kernel at k = 2 for every token:\n")
    results = {"experts on CPU": [experts_on_cpu(*case, seconds=0.5) for case in grid]}
    print_table(results["experts on CPU"])
    if torch.cuda.is_available():
        print(f"On {torch.cuda.get_device_name()}:\n")
        results["experts on GPU"] = [experts_on_gpu(*case) for case in grid]
        print_table(results["experts on GPU"])
        results["router on GPU"] = [router_on_gpu(tokens) for tokens in (1, 64, 4096)]
        print_table(results["router on GPU"])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
