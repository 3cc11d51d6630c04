"""Checks that compare kernels with plain PyTorch."""

from collections.abc import Callable
from functools import partial

import torch

from prismoe.benchmarks.gpu_check.check import Figures, Host
from prismoe.benchmarks.kernels.bench import loop_over_experts, routing
from prismoe.benchmarks.kernels.bench_gpu import vllm_triton_experts
from prismoe.kernels.triton.experts_check import check_grouped_experts
from prismoe.kernels.triton.layer_rows import check_write_rows
from prismoe.model_plugins.moe_layer.gpu_router import check_fused_routing
from tests.model_plugins.routing.routing_steps import CASES, make

DRY_CASES = ("ltdr", "gmm", "two thresholds")


def written_rows(host: Host) -> Figures:
    """Check the kernel that writes down a router's decisions."""
    check_write_rows(host.device)
    return {}


def fused_routing(host: Host, experts: int) -> Figures:
    """Check the routing kernels with every policy of the tests."""
    names = DRY_CASES if host.is_dry else tuple(CASES)
    return _all(
        {name: partial(check_fused_routing, make(CASES[name]), experts, host.device) for name in names}
    )


def grouped_product(host: Host, experts: int) -> Figures:
    """Check prismoe's experts, with and without a gate, in each precision."""
    dtypes = [torch.float32] if host.is_dry else [torch.float32, torch.bfloat16, torch.float16]
    return _all(
        {
            f"{dtype}, {'gated' if is_gated else 'plain'}": partial(
                check_grouped_experts, host.device, dtype, experts, is_gated
            )
            for dtype in dtypes
            for is_gated in (True, False)
        }
    )


def left_out_slots(host: Host, tokens: int = 600, hidden: int = 256, width: int = 512) -> Figures:
    """Check vLLM's Triton experts with unused slots at expert -1, in memory that is filled with NaN."""
    experts = 4
    draw = torch.Generator().manual_seed(0)
    w13 = (torch.randn(experts, 2 * width, hidden, generator=draw) * hidden**-0.5).to(host.device)
    w2 = (torch.randn(experts, hidden, width, generator=draw) * width**-0.5).to(host.device)
    hidden_TD = torch.randn(tokens, hidden, generator=draw).to(host.device)
    weights_TA, experts_TA = (each.to(host.device) for each in routing(tokens, True, experts))
    expected_TD = loop_over_experts(hidden_TD.double(), weights_TA, experts_TA, w13.double(), w2.double())
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    try:
        output_TD = vllm_triton_experts(w13, w2, leaves_out=True)(hidden_TD, weights_TA, experts_TA)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(output_TD.double(), expected_TD, atol=2e-2, rtol=2e-2)
    return {"largest error": float((output_TD - expected_TD).abs().max())}


def _all(checks: dict[str, Callable[[], None]]) -> Figures:
    """Run all checks. Raises AssertionError with the name and message of each that fails."""
    wrong = []
    for name, check in checks.items():
        try:
            check()
        except AssertionError as error:
            wrong.append(f"{name} ({str(error).strip().splitlines()[0]})")
    assert not wrong, "; ".join(wrong)
    return {"cases": len(checks)}
