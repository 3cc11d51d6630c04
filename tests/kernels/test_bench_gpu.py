"""What the GPU benchmark runs of vLLM's, in Triton's interpreter."""

import pytest
import torch

from prismoe.kernels.bench import EXPERTS, loop_over_experts, routing
from prismoe.kernels.bench_gpu import vllm_triton_experts
from tests.kernels.triton_on_cpu import triton_on_cpu  # noqa: F401


@pytest.mark.usefixtures("triton_on_cpu")
@pytest.mark.parametrize("leaves_out", [True, False])
@pytest.mark.parametrize("is_mixed", [True, False])
def test_vllms_experts_match_a_loop(is_mixed: bool, leaves_out: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    w13 = torch.randn(EXPERTS, 64, 24, generator=generator) / 5
    w2 = torch.randn(EXPERTS, 24, 32, generator=generator) / 5
    hidden_TD = torch.randn(20, 24, generator=generator)
    weights_TA, experts_TA = routing(20, is_mixed)
    expected = loop_over_experts(hidden_TD.double(), weights_TA, experts_TA, w13.double(), w2.double())
    actual = vllm_triton_experts(w13, w2, leaves_out)(hidden_TD, weights_TA, experts_TA)
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)
