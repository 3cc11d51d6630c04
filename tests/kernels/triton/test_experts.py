"""The grouped product compared with the float64 reference, in Triton's interpreter."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from prismoe.kernels.triton import experts as triton_experts
from prismoe.kernels.triton.experts import grouped_experts, workspace_rows
from tests.kernels import reference
from tests.kernels.ragged_routing import ragged_routing

HIDDEN, WIDTH = 40, 72


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5


def grouped(
    hidden_TD: Tensor,
    weights_TA: Tensor,
    experts_TA: Tensor,
    experts: int,
    gated: bool,
    most_rows: int = 1000,
    biased: bool | None = None,
) -> Tensor:
    """Run the grouped product. Experts without a gate have biases by default, like Phi's."""
    w13, w2 = random(experts, (1 + gated) * WIDTH, HIDDEN), random(experts, HIDDEN, WIDTH)
    has_bias = not gated if biased is None else biased
    b13, b2 = None, None
    if has_bias:
        b13, b2 = random(experts, (1 + gated) * WIDTH, seed=2), random(experts, HIDDEN, seed=3)
    activation: Literal["silu", "gelu_tanh"] = "silu" if gated else "gelu_tanh"
    tokens, slots = weights_TA.shape
    rows = workspace_rows(tokens, slots, most_rows)
    workspace = torch.full((rows, HIDDEN + WIDTH), torch.nan)
    output_TD = torch.full_like(hidden_TD, torch.nan)
    grouped_experts(hidden_TD, weights_TA, experts_TA, w13, w2, b13, b2, activation, workspace, output_TD)
    return output_TD


def expected(
    hidden_TD: Tensor,
    weights_TA: Tensor,
    experts_TA: Tensor,
    experts: int,
    gated: bool,
    biased: bool | None = None,
) -> np.ndarray:
    w13 = random(experts, (1 + gated) * WIDTH, HIDDEN).double().numpy()
    w2 = random(experts, HIDDEN, WIDTH).double().numpy()
    b13 = random(experts, (1 + gated) * WIDTH, seed=2).double().numpy()
    b2 = random(experts, HIDDEN, seed=3).double().numpy()
    has_bias = not gated if biased is None else biased

    def expert(index: int, row: np.ndarray) -> np.ndarray:
        inner = w13[index] @ row + has_bias * b13[index]
        if gated:
            gate, up = np.split(inner, 2)
            inner = reference.silu(gate) * up
        else:
            inner = reference.gelu_tanh(inner)
        output: np.ndarray = w2[index] @ inner + has_bias * b2[index]
        return output

    return reference.moe(hidden_TD.double().numpy(), weights_TA.double().numpy(), experts_TA.numpy(), expert)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize(
    ("tokens", "experts", "slots"),
    [(1, 4, 4), (3, 2, 1), (7, 5, 9), (65, 4, 4), pytest.param(33, 64, 8, marks=pytest.mark.slow)],
)
def test_it_matches_the_reference(tokens: int, experts: int, slots: int, gated: bool) -> None:
    weights_TA, experts_TA = ragged_routing(tokens, experts, slots)
    hidden_TD = random(tokens, HIDDEN, seed=tokens)
    inputs = hidden_TD, weights_TA, experts_TA, experts, gated
    np.testing.assert_allclose(grouped(*inputs).double(), expected(*inputs), atol=1e-5, rtol=1e-5)


def test_gate_and_up_have_separate_biases() -> None:
    inputs = random(7, HIDDEN, seed=7), *ragged_routing(7, 5, 9), 5, True
    output_TD = grouped(*inputs, biased=True)
    np.testing.assert_allclose(output_TD.double(), expected(*inputs, biased=True), atol=1e-5, rtol=1e-5)


def test_a_dropped_slot_is_not_run() -> None:
    weights_TA, experts_TA = ragged_routing(7, 4, 4)
    hidden_TD = random(7, HIDDEN)
    dropped_TA = torch.where(weights_TA != 0, experts_TA, -1)
    repeated_TD = grouped(hidden_TD, weights_TA, experts_TA, 4, gated=True)
    assert torch.equal(grouped(hidden_TD, weights_TA, dropped_TA, 4, gated=True), repeated_TD)


@pytest.mark.slow
def test_chunks_of_tokens_give_the_same_as_all_at_once() -> None:
    """The interpreter's products are BLAS's, where a row's last bit can depend on its place in a block."""
    weights_TA, experts_TA = ragged_routing(40, 12, 9)
    inputs = random(40, HIDDEN), weights_TA, experts_TA, 12, True
    assert workspace_rows(40, 9, most_rows=150) == 16 * 9 < workspace_rows(40, 9, most_rows=1000) == 40 * 9
    torch.testing.assert_close(grouped(*inputs, most_rows=150), grouped(*inputs), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_blocks_that_take_turns_give_the_same_as_all_at_once(
    monkeypatch: pytest.MonkeyPatch, gated: bool
) -> None:
    """There are seven blocks: three of five experts have more than the 64 rows of one.

    Three programs run them.
    """
    weights_TA, experts_TA = ragged_routing(65, 5, 9)
    experts_TA = experts_TA.clamp(max=3).where(experts_TA % 4 != 1, 1)
    inputs = random(65, HIDDEN), weights_TA, experts_TA, 5, gated
    at_once_TD = grouped(*inputs)
    monkeypatch.setattr(triton_experts, "MOST_BLOCKS", 3)
    assert torch.equal(grouped(*inputs), at_once_TD)
    np.testing.assert_allclose(at_once_TD.double(), expected(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("slots", "rows"), [(64, 65536), (9, 65520), (5000, 80000)])
def test_the_workspace_of_a_long_step_is_bounded(slots: int, rows: int) -> None:
    """It is larger only if 16 tokens, the smallest chunk, have too many slots."""
    assert workspace_rows(100_000, slots, 65536) == rows
