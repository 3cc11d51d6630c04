"""The experts on CPU: vLLM's kernel in the flat form, oneDNN's products in the sorted form."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm._custom_ops import cpu_fused_moe, cpu_prepack_moe_weight

from prismoe.kernels.ragged_experts import LEAST_SLOTS, LEAST_WORK, flat_experts, sorted_experts
from prismoe.model_plugins.moe_layer.experts.cpu_experts import plain_expert
from tests.kernels import reference
from tests.kernels.ragged_routing import SIZES, ragged_routing

EXPERTS, SLOTS = 4, 4
Form = Callable[[Tensor, Tensor, Tensor], Tensor]
Reference = Callable[[int, np.ndarray], np.ndarray]


@pytest.fixture(autouse=True)
def least_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make large parts of a step skip unused slots, and small ones not."""
    for dtype in LEAST_WORK:
        monkeypatch.setitem(LEAST_WORK, dtype, 20 * 64**2)
        monkeypatch.setitem(LEAST_SLOTS, dtype, 1)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5


def gated(hidden: int, width: int, dtype: torch.dtype) -> tuple[Form, Reference]:
    w13, w2 = random(EXPERTS, 2 * width, hidden).to(dtype), random(EXPERTS, hidden, width).to(dtype)
    packed_w13, packed_w2 = (cpu_prepack_moe_weight(weight, "vec") for weight in (w13, w2))

    def fixed_experts(hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> Tensor:
        output_TD = torch.empty_like(hidden_TD)
        cpu_fused_moe(
            output_TD, hidden_TD, packed_w13, packed_w2, None, None, weights_TA, experts_TA, "silu", "vec"
        )
        return output_TD

    def expert(index: int, row: np.ndarray) -> np.ndarray:
        gate, up = np.split(w13[index].double().numpy() @ row, 2)
        output: np.ndarray = w2[index].double().numpy() @ (reference.silu(gate) * up)
        return output

    return partial(flat_experts, fixed_experts=fixed_experts), expert


def plain(hidden: int, width: int, dtype: torch.dtype) -> tuple[Form, Reference]:
    w1, w2 = random(EXPERTS, width, hidden).to(dtype), random(EXPERTS, hidden, width).to(dtype)
    b1, b2 = random(EXPERTS, width, seed=2).to(dtype), random(EXPERTS, hidden, seed=3).to(dtype)

    def expert(index: int, row: np.ndarray) -> np.ndarray:
        up = reference.gelu_tanh(w1[index].double().numpy() @ row + b1[index].double().numpy())
        output: np.ndarray = w2[index].double().numpy() @ up + b2[index].double().numpy()
        return output

    return partial(sorted_experts, experts=list(map(plain_expert, w1, b1, w2, b2))), expert


KINDS = [(gated, 64, 160), (gated, 96, 32), (plain, 48, 192), (plain, 48, 200), (plain, 512, 96)]
DTYPES = [(torch.float32, 2e-5), (torch.bfloat16, 0.05)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "hidden", "width"), KINDS)
@pytest.mark.parametrize("tokens", SIZES)
def test_experts_match_the_reference(
    kind: Callable[..., tuple[Form, Reference]],
    hidden: int,
    width: int,
    tokens: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    form, expert = kind(hidden, width, dtype)
    weights_TA, experts_TA = ragged_routing(tokens, EXPERTS, SLOTS)
    hidden_TD = random(tokens, hidden, seed=tokens).to(dtype)
    expected = reference.moe(
        hidden_TD.double().numpy(), weights_TA.double().numpy(), experts_TA.numpy(), expert
    )
    actual = form(hidden_TD, weights_TA, experts_TA).double()
    np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("kind", "hidden", "width"), [*KINDS, (plain, 96, 2560), (plain, 2560, 96)])
def test_in_float32_a_token_does_not_depend_on_the_others(
    kind: Callable[..., tuple[Form, Reference]], hidden: int, width: int
) -> None:
    form, _ = kind(hidden, width, torch.float32)
    weights_TA, experts_TA = ragged_routing(130, EXPERTS, SLOTS)
    hidden_TD = random(130, hidden)
    together_TD = form(hidden_TD, weights_TA, experts_TA)
    for size in (1, 2, 3, 5, 9, 33, 64):
        parts = zip(hidden_TD.split(size), weights_TA.split(size), experts_TA.split(size), strict=True)
        assert torch.equal(together_TD, torch.cat([form(*part) for part in parts]))
