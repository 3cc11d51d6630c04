"""Checks and times the Triton kernels and vLLM's on a GPU, for `prismoe.benchmarks.kernels.bench`."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from triton.testing import do_bench, do_bench_cudagraph

from prismoe.benchmarks.kernels.bench import (
    EXPERTS,
    Experts,
    Row,
    Variants,
    floor_seconds,
    loop_over_experts,
    routing,
    sort_and_grouped_product,
)
from prismoe.kernels.triton.experts import MOST_ROWS, grouped_experts, workspace_rows
from prismoe.kernels.triton.mixture import mixture_router
from prismoe.kernels.triton.router_check import (
    check_mixture,
    check_routing,
    mixture_plain,
    random_logits,
    random_mixture,
    route_fused,
    route_plain,
)

DEVICE = "cuda"
IMAGE_TOKENS = 576
"""The tokens of one of MoE-LLaVA's images."""


def vllm_triton_experts(w13: Tensor, w2: Tensor, leaves_out: bool) -> Experts:
    """vLLM's own Triton kernels. With `leaves_out` they skip slots of weight 0, as in serving.

    If `w13` has no gate, they use Phi's activation.
    """
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import (
        FUSED_MOE_UNQUANTIZED_CONFIG,
        FusedMoEConfig,
        FusedMoEParallelConfig,
        RoutingMethodType,
    )
    from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts

    experts, hidden, width = w2.shape
    rows = w13.shape[1]
    config = FusedMoEConfig(
        num_experts=experts,
        experts_per_token=experts,
        hidden_dim=hidden,
        intermediate_size=width,
        num_local_experts=experts,
        num_logical_experts=experts,
        activation=MoEActivation.SILU if rows > width else MoEActivation.GELU_TANH_NO_MUL,
        device=w13.device,
        routing_method=RoutingMethodType.Custom,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=w13.dtype,
    )
    kernels = TritonExperts(config, FUSED_MOE_UNQUANTIZED_CONFIG)
    expert_map = torch.arange(experts, dtype=torch.int32, device=w13.device) if leaves_out else None

    def run(hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> Tensor:
        shapes = kernels.workspace_shapes(
            len(hidden_TD), rows, hidden, experts_TA.shape[1], experts, experts, None, config.activation
        )
        workspace13, workspace2, output_TD = (hidden_TD.new_empty(shape) for shape in shapes)
        kernels.apply(
            output_TD,
            hidden_TD,
            w13,
            w2,
            weights_TA,
            experts_TA.masked_fill(weights_TA == 0, -1) if leaves_out else experts_TA,
            config.activation,
            experts,
            expert_map,
            a1q_scale=None,
            a2_scale=None,
            workspace13=workspace13,
            workspace2=workspace2,
            expert_tokens_meta=None,
            apply_router_weight_on_input=False,
        )
        return output_TD

    return run


def experts_on_gpu(
    dtype: torch.dtype, hidden: int, tokens: int, experts: int = EXPERTS, width: int | None = None
) -> Row:
    """Check the ways to run ragged experts against float64; return their times, a loop's time and the floor.

    In float32, vLLM's kernels round products to TF32; the grouped product does not.
    """
    width = width or 4 * hidden
    w13 = (torch.randn(experts, 2 * width, hidden, device=DEVICE) * hidden**-0.5).to(dtype)
    w2 = (torch.randn(experts, hidden, width, device=DEVICE) * width**-0.5).to(dtype)
    hidden_TD = torch.randn(tokens, hidden, device=DEVICE).to(dtype)
    ragged = weights_TA, experts_TA = [each.to(DEVICE) for each in routing(tokens, True, experts)]
    two = [each.to(DEVICE) for each in routing(tokens, False, experts)]
    vllm = vllm_triton_experts(w13, w2, leaves_out=False)
    left_out = vllm_triton_experts(w13, w2, leaves_out=True)

    def grouped() -> Tensor:
        output_TD = torch.empty_like(hidden_TD)
        rows = workspace_rows(tokens, experts, MOST_ROWS)
        workspace = hidden_TD.new_empty(rows, hidden + width)
        grouped_experts(hidden_TD, weights_TA, experts_TA, w13, w2, None, None, "silu", workspace, output_TD)
        return output_TD

    variants = {
        "left out": lambda: left_out(hidden_TD, *ragged),
        "weight 0": lambda: vllm(hidden_TD, *ragged),
        "grouped": grouped,
    }
    baselines = {  # not in a CUDA graph, as they may wait for the device
        "loop": loop_over_experts,
        "grouped_mm": sort_and_grouped_product,
    }
    expected = loop_over_experts(hidden_TD.double(), weights_TA, experts_TA, w13.double(), w2.double())
    for run in variants.values():
        torch.testing.assert_close(run().double(), expected, atol=2e-2, rtol=2e-2)
    measured = {
        **milliseconds({"fixed k = 2": lambda: vllm(hidden_TD, *two), **variants}),
        **{
            name: do_bench(partial(run, hidden_TD, weights_TA, experts_TA, w13, w2))
            for name, run in baselines.items()
        },
        "floor": floor_seconds(weights_TA, experts_TA, w13, milliseconds),
    }
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "experts": experts,
        "hidden": hidden,
        "tokens": tokens,
        "experts used": int(weights_TA.count_nonzero()) / (2 * tokens),
        **{f"{name}, ms": value for name, value in measured.items()},
    }


def milliseconds(variants: Variants) -> dict[str, float]:
    """The milliseconds of each variant in a CUDA graph, as in serving."""
    return {name: do_bench_cudagraph(run) for name, run in variants.items()}


def router_on_gpu(tokens: int) -> Row:
    """Check `ltdr`'s fused router against the plain one, and time both."""
    segment_T = torch.arange(tokens, device=DEVICE) // IMAGE_TOKENS
    check_routing(segment_T, EXPERTS)
    step = random_logits(segment_T, EXPERTS), segment_T
    return _fused_beside_plain(tokens, partial(route_fused, *step), partial(route_plain, *step))


def mixture_on_gpu(tokens: int) -> Row:
    """Check `gmm`'s fused routing after its encoder against the plain one, and time both."""
    rule = random_mixture(tokens, EXPERTS, DEVICE)
    check_mixture(rule)
    return _fused_beside_plain(tokens, partial(mixture_router, *rule), partial(mixture_plain, rule))


def _fused_beside_plain(tokens: int, fused: Callable[[], object], plain: Callable[[], object]) -> Row:
    measured = milliseconds({"fused": fused, "plain": plain})
    return {"tokens": tokens, **{f"{name}, µs": 1000 * value for name, value in measured.items()}}
