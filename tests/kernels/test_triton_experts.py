"""The grouped product against the float64 reference, by Triton's interpreter."""

import numpy as np
import pytest
import torch
from torch import Tensor

from prismoe.kernels.triton_experts import grouped_experts
from tests.kernels import reference
from tests.kernels.ragged_routing import ragged_routing

HIDDEN, WIDTH = 40, 72


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5


def grouped(hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor, experts: int, gated: bool) -> Tensor:
    w13, w2 = random(experts, (1 + gated) * WIDTH, HIDDEN), random(experts, HIDDEN, WIDTH)
    b13, b2 = (None, None) if gated else (random(experts, WIDTH, seed=2), random(experts, HIDDEN, seed=3))
    used = int(weights_TA.count_nonzero())
    activation = "silu" if gated else "gelu_tanh"
    return grouped_experts(hidden_TD, weights_TA, experts_TA, w13, w2, b13, b2, activation, used + 3)


def expected(
    hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor, experts: int, gated: bool
) -> np.ndarray:
    w13 = random(experts, (1 + gated) * WIDTH, HIDDEN).double().numpy()
    w2 = random(experts, HIDDEN, WIDTH).double().numpy()
    b1, b2 = random(experts, WIDTH, seed=2).double().numpy(), random(experts, HIDDEN, seed=3).double().numpy()

    def expert(index: int, row: np.ndarray) -> np.ndarray:
        if gated:
            gate, up = np.split(w13[index] @ row, 2)
            output: np.ndarray = w2[index] @ (reference.silu(gate) * up)
        else:
            output = w2[index] @ reference.gelu_tanh(w13[index] @ row + b1[index]) + b2[index]
        return output

    return reference.moe(hidden_TD.double().numpy(), weights_TA.double().numpy(), experts_TA.numpy(), expert)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize(
    ("tokens", "experts", "slots"), [(1, 4, 4), (3, 2, 1), (7, 5, 9), (65, 4, 4), (33, 64, 8)]
)
def test_it_matches_the_reference(tokens: int, experts: int, slots: int, gated: bool) -> None:
    weights_TA, experts_TA = ragged_routing(tokens, experts, slots)
    hidden_TD = random(tokens, HIDDEN, seed=tokens)
    inputs = hidden_TD, weights_TA, experts_TA, experts, gated
    np.testing.assert_allclose(grouped(*inputs).double(), expected(*inputs), atol=1e-5, rtol=1e-5)


def test_a_dropped_slot_is_not_run() -> None:
    weights_TA, experts_TA = ragged_routing(7, 4, 4)
    hidden_TD = random(7, HIDDEN)
    dropped_TA = torch.where(weights_TA != 0, experts_TA, -1)
    repeated_TD = grouped(hidden_TD, weights_TA, experts_TA, 4, gated=True)
    assert torch.equal(grouped(hidden_TD, weights_TA, dropped_TA, 4, gated=True), repeated_TD)
