"""The flat and the sorted form compared with the float64 reference, with experts in plain PyTorch."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from prismoe.kernels.ragged_experts import LEAST_SLOTS, LEAST_WORK, flat_experts, sorted_experts
from tests.kernels import reference
from tests.kernels.ragged_routing import SIZES, ragged_routing

HIDDEN, EXPERTS = 8, 5
Form = Callable[[Tensor, Tensor, Tensor], Tensor]
matrices_EDD = torch.randn(EXPERTS, HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(7))


def fixed_experts(hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> Tensor:
    """Compute one row at a time, so that no row depends on another.

    The sum is a chain of fused multiply-adds.
    """
    output_TD = torch.zeros_like(hidden_TD, dtype=torch.float32)
    for token, (row_D, experts) in enumerate(zip(hidden_TD, experts_TA.tolist(), strict=True)):
        for weight, expert in zip(weights_TA[token].double(), experts, strict=True):
            product_D = weight * (row_D @ matrices_EDD[expert].to(row_D.dtype)).double()
            output_TD[token] = output_TD[token].double() + product_D
    return output_TD.to(hidden_TD.dtype)


def one_expert(matrix_DD: Tensor, hidden_RD: Tensor) -> Tensor:
    return torch.stack([row @ matrix_DD.to(row.dtype) for row in hidden_RD])


FORMS: dict[str, Form] = {
    "flat": partial(flat_experts, fixed_experts=fixed_experts),
    "sorted": partial(sorted_experts, experts=[partial(one_expert, matrix) for matrix in matrices_EDD]),
}


@pytest.fixture(autouse=True, params=[0, 300 * HIDDEN**2], ids=["skip any", "skip many"])
def least_work(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    for dtype in LEAST_WORK:
        monkeypatch.setitem(LEAST_WORK, dtype, request.param)
        monkeypatch.setitem(LEAST_SLOTS, dtype, 1)
    return request.param


@pytest.fixture(params=list(FORMS.values()), ids=list(FORMS))
def form(request: pytest.FixtureRequest) -> Form:
    return request.param


@pytest.mark.parametrize("slots", [1, 2, 4, 9])
@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)], ids=str)
def test_a_form_matches_the_reference(
    form: Form, tokens: int, slots: int, dtype: torch.dtype, tolerance: float
) -> None:
    weights_TA, experts_TA = ragged_routing(tokens, EXPERTS, slots)
    hidden_TD = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    expected = reference.moe(
        hidden_TD.double().numpy(),
        weights_TA.double().numpy(),
        experts_TA.numpy(),
        lambda expert, row: row @ matrices_EDD[expert].to(dtype).double().numpy(),
    )
    actual = form(hidden_TD, weights_TA, experts_TA)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual.double(), expected, atol=tolerance, rtol=tolerance)


def test_a_token_does_not_depend_on_the_others(form: Form) -> None:
    tokens, slots = 65, 4
    weights_TA, experts_TA = ragged_routing(tokens, EXPERTS, slots)
    hidden_TD = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(3))
    together_TD = form(hidden_TD, weights_TA, experts_TA)
    for size in (1, 2, 5, 64):
        parts = zip(hidden_TD.split(size), weights_TA.split(size), experts_TA.split(size), strict=True)
        assert torch.equal(together_TD, torch.cat([form(*part) for part in parts]))


def test_the_flat_form_skips_unused_slots_if_that_saves_time(least_work: int) -> None:
    weights_TA, experts_TA = ragged_routing(16, EXPERTS, 4)
    sizes = []

    def counting(hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> Tensor:
        sizes.append(experts_TA.numel())
        return fixed_experts(hidden_TD, weights_TA, experts_TA)

    flat_experts(torch.randn(16, HIDDEN), weights_TA, experts_TA, counting)
    assert sizes == [weights_TA.numel() if least_work else int(weights_TA.count_nonzero())]


@pytest.mark.parametrize(("unused", "pairs"), [(39, 64), (40, 24)])
def test_skipping_depends_on_the_number_of_unused_slots(
    monkeypatch: pytest.MonkeyPatch, unused: int, pairs: int
) -> None:
    monkeypatch.setitem(LEAST_WORK, torch.float32, 40 * HIDDEN**2)
    weights_TA, experts_TA = torch.ones(16, 4), torch.zeros(16, 4, dtype=torch.int32)
    weights_TA.view(-1)[:unused] = 0
    sizes = []

    def counting(hidden_TD: Tensor, weights_TA: Tensor, _: Tensor) -> Tensor:
        sizes.append(weights_TA.numel())
        return hidden_TD

    flat_experts(torch.randn(16, HIDDEN), weights_TA, experts_TA, counting)
    assert sizes == [pairs]


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_without_used_experts_runs_none(tokens: int, dtype: torch.dtype) -> None:
    weights_TA, experts_TA = torch.zeros(tokens, 4), torch.ones(tokens, 4, dtype=torch.int32)
    hidden_TD = torch.full((tokens, HIDDEN), torch.inf, dtype=dtype)

    def run(*_: Tensor) -> Tensor:
        raise AssertionError("an expert runs")

    for output_TD in (
        flat_experts(hidden_TD, weights_TA, experts_TA, run),
        sorted_experts(hidden_TD, weights_TA, experts_TA, [run] * EXPERTS),
    ):
        assert torch.equal(output_TD, torch.zeros(tokens, HIDDEN, dtype=dtype))


def test_a_small_step_is_not_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEAST_SLOTS, torch.float32, 16 * 4 + 1)
    weights_TA, experts_TA = ragged_routing(16, EXPERTS, 4)
    hidden_TD = torch.randn(16, HIDDEN)
    given: list[tuple[Tensor, ...]] = []

    def same(*step: Tensor) -> Tensor:
        given.append(step)
        return step[0]

    flat_experts(hidden_TD, weights_TA, experts_TA, same)
    assert all(part is step for part, step in zip(given[0], (hidden_TD, weights_TA, experts_TA), strict=True))


def test_a_small_step_with_many_slots_is_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unused slots of one token can be more work than many tokens that use theirs."""
    monkeypatch.setitem(LEAST_SLOTS, torch.float32, 16 * 4 + 1)
    weights_TA, experts_TA = torch.zeros(1, 65), torch.zeros(1, 65, dtype=torch.int32)
    weights_TA[0, :2] = 0.5
    pairs: list[int] = []

    def counting(hidden_TD: Tensor, weights_TA: Tensor, _: Tensor) -> Tensor:
        pairs.append(weights_TA.numel())
        return hidden_TD

    flat_experts(torch.randn(1, HIDDEN), weights_TA, experts_TA, counting)
    assert pairs == [2]


def test_the_flat_form_leaves_out_slots_that_no_token_uses() -> None:
    widths = []

    def noting(hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> Tensor:
        widths.append((weights_TA.shape[1], experts_TA.is_contiguous()))
        return fixed_experts(hidden_TD, weights_TA, experts_TA)

    weights_TA, experts_TA = ragged_routing(16, EXPERTS, 2)
    unused_TA = torch.zeros(16, 3)
    wide = torch.cat([weights_TA, unused_TA], dim=1), torch.cat([experts_TA, unused_TA.int()], dim=1)
    hidden_TD = torch.randn(16, HIDDEN)
    output_TD = flat_experts(hidden_TD, *wide, noting)
    assert torch.equal(output_TD, flat_experts(hidden_TD, weights_TA, experts_TA, noting))
    assert widths[0] == widths[1]
    assert widths[0][1]
