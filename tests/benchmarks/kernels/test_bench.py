"""The benchmark's baselines agree with each other."""

import pytest
import torch

from prismoe.benchmarks.kernels.bench import EXPERTS, loop_over_experts, routing, sort_and_grouped_product


@pytest.mark.parametrize("is_mixed", [True, False])
@pytest.mark.parametrize("tokens", [1, 20])
def test_the_grouped_product_matches_the_loop(tokens: int, is_mixed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    w13 = torch.randn(EXPERTS, 64, 24, generator=generator)
    w2 = torch.randn(EXPERTS, 24, 32, generator=generator)
    step = torch.randn(tokens, 24, generator=generator), *routing(tokens, is_mixed), w13, w2
    torch.testing.assert_close(
        sort_and_grouped_product(*step), loop_over_experts(*step), rtol=1e-4, atol=1e-3
    )
