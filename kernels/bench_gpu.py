"""Checks and times the Triton kernels on a GPU, for `python -m prismoe.kernels.bench`."""

import torch
from torch import Tensor
from triton.testing import do_bench, do_bench_cudagraph

from prismoe.kernels.bench import EXPERTS, SLOTS, Row, Variants, floor_seconds, loop_over_experts, routing
from prismoe.kernels.expert_load import Confidence, count_expert_load, empty_load
from prismoe.kernels.routing import router_probabilities, tail_tokens, top_experts_by_count
from prismoe.kernels.triton_experts import grouped_experts
from prismoe.kernels.triton_router import ltdr_router


def experts_on_gpu(dtype: torch.dtype, hidden: int, tokens: int) -> Row:
    """Checks the grouped product against float64; its time beside the floor, padding and a loop."""
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
    measured = milliseconds(
        {
            "ragged": lambda: grouped(weights_TA),
            "padding": lambda: grouped(all_used_TA),
            "loop": lambda: loop_over_experts(hidden_TD, weights_TA, experts_TA, w13, w2),
        }
    )
    floor = floor_seconds(weights_TA, experts_TA, w13, milliseconds)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "hidden": hidden,
        "tokens": tokens,
        **{f"{name}, ms": value for name, value in (measured | {"floor": floor}).items()},
    }


def milliseconds(variants: Variants) -> dict[str, float]:
    """Of each."""
    return {name: do_bench(run) for name, run in variants.items()}


def router_on_gpu(tokens: int) -> Row:
    """Checks the fused router, weights and counts with it, against the plain one, and times both."""
    logits_TE = torch.randn(tokens, EXPERTS, device="cuda")
    segment_T = torch.zeros(tokens, dtype=torch.int64, device="cuda")
    load_MC, expected_load_MC = empty_load(EXPERTS).cuda(), empty_load(EXPERTS).cuda()

    def plain() -> tuple[Tensor, Tensor]:
        tail_T = tail_tokens(router_probabilities(logits_TE), segment_T)
        count_T = torch.where(tail_T, SLOTS, 2)
        experts_TA, weights_TA = top_experts_by_count(logits_TE, count_T, SLOTS, renormalize=True)
        confidence = Confidence(logits_TE)
        count_expert_load(expected_load_MC, experts_TA, count_T, tail_T, segment_T, confidence)
        return experts_TA, weights_TA

    def fused() -> tuple[Tensor, Tensor]:
        return ltdr_router(logits_TE, segment_T, load_MC, 1, 2, SLOTS, renormalize=True)

    (experts_TA, weights_TA), (expected_TA, expected_weights_TA) = fused(), plain()
    torch.testing.assert_close(experts_TA.long(), expected_TA)
    torch.testing.assert_close(weights_TA, expected_weights_TA)
    torch.testing.assert_close(load_MC, expected_load_MC, rtol=1e-5, atol=tokens)
    return {
        "tokens": tokens,
        "fused, µs": 1000 * do_bench_cudagraph(fused),
        "plain, µs": 1000 * do_bench_cudagraph(plain),
    }
