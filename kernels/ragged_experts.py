"""Runs only the (token, expert) pairs that routing used, on CPU: work proportional to Σ k_i.

A router gives every token the same number of slots A; a slot that a token does not use has weight 0.
`flat_experts` and `sorted_experts` skip these slots for two kinds of expert kernels. Both sum a token's
experts in the order of its slots, so that its result does not depend on the other tokens.

Shapes beyond `prismoe.kernels.routing`: P used pairs, ordered by token and then by slot.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FixedExperts = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A kernel with the same number of experts for each token: (`hidden_TD`, `weights_TA`, `experts_TA`) ->
`output_TD`."""

OneExpert = Callable[[Tensor], Tensor]
"""One expert on R rows: `hidden_RD` -> `output_RD`."""

LEAST_SLOTS = {torch.float32: 32, torch.bfloat16: 128, torch.float16: 128}
"""The least number of slots, over all tokens, at which skipping pays. With fewer, an unused slot costs next
to nothing: it repeats an expert that is computed anyway."""
LEAST_WORK = {torch.float32: 2**21, torch.bfloat16: 3 * 2**21, torch.float16: 3 * 2**21}
"""The least unused pairs · D² at which skipping saves more time than it takes. Both limits were measured by
`python -m prismoe.benchmarks.kernels.bench` with experts four times as wide as D, and bfloat16 with AMX."""

FUSED: bool = torch.cpu._is_avx512_supported()
"""Whether vLLM's kernel sums experts in float32 by fused multiply-adds, as its AVX-512 build does."""


def flat_experts(
    hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor, fixed_experts: FixedExperts
) -> Tensor:
    """Run `fixed_experts` on the used pairs, each as a separate token with one expert.

    In small steps, and where nearly all slots are used, it runs `fixed_experts` on the tokens, without the
    slots that no token uses. In float32 both ways give the same bits, since both round Σ weight · output as
    vLLM's kernel does: with AVX-512 as a chain of fused multiply-adds, else product by product. In bfloat16
    each pair's output is rounded before the sum.
    """
    if weights_TA.numel() < LEAST_SLOTS[hidden_TD.dtype]:
        return fixed_experts(hidden_TD, weights_TA, experts_TA)
    weights = weights_TA.numpy()
    slots = weights.shape[1]
    while slots and not np.count_nonzero(weights[:, slots - 1]):
        slots -= 1
    if not slots:
        return torch.zeros_like(hidden_TD)
    if slots < weights.shape[1]:
        weights_TA, experts_TA = weights_TA.narrow_copy(1, 0, slots), experts_TA.narrow_copy(1, 0, slots)
        weights = weights_TA.numpy()
    if not _is_worth_skipping(hidden_TD, weights):
        return fixed_experts(hidden_TD, weights_TA, experts_TA)
    pair_P = np.flatnonzero(weights)
    token_P = pair_P // slots
    weight_P1 = torch.from_numpy(weights.reshape(-1, 1)[pair_P])
    expert_P1 = torch.from_numpy(experts_TA.numpy().reshape(-1, 1)[pair_P])
    hidden_PD, row_P = hidden_TD.index_select(0, torch.from_numpy(token_P)), torch.arange(len(pair_P))
    if hidden_TD.dtype == torch.float32 and FUSED:
        output_PD = fixed_experts(hidden_PD, torch.ones_like(weight_P1), expert_P1)
        return _sum_by_token(output_PD, row_P, token_P, len(hidden_TD), weight_P1.view(-1))
    output_PD = fixed_experts(hidden_PD, weight_P1, expert_P1)
    return _sum_by_token(output_PD, row_P, token_P, len(hidden_TD), None)


def _is_worth_skipping(hidden_TD: Tensor, weights: NDArray[np.float32]) -> bool:
    used = int(np.count_nonzero(weights))
    return (weights.size - used) * hidden_TD.shape[1] ** 2 >= LEAST_WORK[hidden_TD.dtype]


def sorted_experts(
    hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor, experts: Sequence[OneExpert]
) -> Tensor:
    """Sort the used pairs by expert, and run each of `experts` once on all its rows."""
    weights = weights_TA.numpy()
    pair_P = np.flatnonzero(weights)
    if not len(pair_P):
        return torch.zeros_like(hidden_TD)
    expert_P = experts_TA.numpy().reshape(-1)[pair_P]
    weight_P = torch.from_numpy(weights.reshape(-1)[pair_P])
    if len(hidden_TD) == 1:  # one request that decodes: nothing to sort
        token_P = np.zeros_like(pair_P)
        row_P = torch.arange(len(pair_P))
        output_PD = torch.cat([experts[expert](hidden_TD) for expert in expert_P.tolist()])
    else:
        token_P = pair_P // weights.shape[1]
        order_P = expert_P.argsort(kind="stable")
        row_P = torch.from_numpy(order_P.argsort())
        hidden_PD = hidden_TD.index_select(0, torch.from_numpy(token_P[order_P]))
        rows_E = np.bincount(expert_P, minlength=len(experts)).tolist()
        output_PD = torch.cat(
            [expert(rows) for expert, rows in zip(experts, hidden_PD.split(rows_E), strict=True) if len(rows)]
        )
    if hidden_TD.dtype == torch.float32:
        return _sum_by_token(output_PD, row_P, token_P, len(hidden_TD), weight_P)
    output_PD[row_P] *= weight_P[:, None]
    return _sum_by_token(output_PD, row_P, token_P, len(hidden_TD), None)


def _sum_by_token(
    output_PD: Tensor, row_P: Tensor, token_P: NDArray[np.int64], tokens: int, weight_P: Tensor | None
) -> Tensor:
    """Each token's sum of its rows of `output_PD`, weighted or not, in the order of its slots."""
    first_T = torch.from_numpy(np.searchsorted(token_P, np.arange(tokens)))
    output_TD: Tensor = torch.embedding_bag(output_PD, row_P, first_T, False, 0, False, weight_P)[0]
    return output_TD
