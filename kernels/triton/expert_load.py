"""Counting expert load in one Triton launch, as `prismoe.kernels.expert_load` does.

Only integers are added atomically, so that the counts are the same in any order.

Tested by Triton's interpreter and compiled ahead for sm_80, sm_90 and sm_100; not yet run on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from prismoe.kernels.expert_load import NEAR_TIE, SUMS, UNIT, Confidence, experts_of

TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


def constants(experts: int) -> dict[str, int | float]:
    """What the kernel is compiled for."""
    block_e = triton.next_power_of_2(experts)
    block_t = max(16, min(64, 2048 // block_e))
    return {"SUMS": len(SUMS), "NEAR_TIE": NEAR_TIE, "UNIT": UNIT, "BLOCK_T": block_t, "BLOCK_E": block_e}


@triton.jit
def _softmax(logits_TE):
    exp_TE = tl.exp(logits_TE - tl.max(logits_TE, 1)[:, None])
    return exp_TE / tl.sum(exp_TE, 1)[:, None]


@triton.jit
def _whole(value_T):
    """In parts of 1, of which NaN has none: padding may hold it."""
    return tl.floor(tl.where(value_T == value_T, value_T, 0.0) + 0.5).to(tl.int64)


@triton.jit(do_not_specialize=["T"])
def _count(load_ptr, experts_ptr, count_ptr, tail_ptr, segment_ptr, logits_ptr, scores_ptr, T, E, SCORED, A,
           SUMS: tl.constexpr, NEAR_TIE: tl.constexpr, UNIT: tl.constexpr,
           BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr):  # fmt: skip
    """Adds a block of tokens to `load_MC`; `count_expert_load` says what a pointer that is None means."""
    token_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_inside_T = token_T < T
    segment_T = tl.full([BLOCK_T], -1, tl.int32)
    if segment_ptr is not None:
        segment_T = tl.load(segment_ptr + token_T, is_inside_T, -2).to(tl.int32)
    count_T = tl.full([BLOCK_T], 0, tl.int32) + A
    if count_ptr is not None:
        count_T = tl.load(count_ptr + token_T, is_inside_T, 1).to(tl.int32)
    is_tail_T = tl.full([BLOCK_T], 0, tl.int32)
    if tail_ptr is not None:
        is_tail_T = tl.load(tail_ptr + token_T, is_inside_T, 0).to(tl.int32)
    expert_E = tl.arange(0, BLOCK_E)
    uses_TE = tl.zeros([BLOCK_T, BLOCK_E], tl.int32)
    for slot in range(A):
        expert_T = tl.load(experts_ptr + token_T * A + slot, is_inside_T & (slot < count_T), -1).to(tl.int32)
        uses_TE += (expert_E[None, :] == expert_T[:, None]).to(tl.int32)

    if logits_ptr is not None:
        is_scored_E = expert_E < SCORED
        inside_TE = is_inside_T[:, None] & is_scored_E[None, :]
        at_TE = token_T[:, None] * SCORED + expert_E[None, :]
        probs_TE = _softmax(tl.load(logits_ptr + at_TE, inside_TE, float("-inf")))
        scores_TE = probs_TE
        if scores_ptr is not None:
            scores_TE = tl.load(scores_ptr + at_TE, inside_TE, 0.0)
        is_used_TE = (uses_TE > 0) & is_scored_E[None, :]
        last_used_T = tl.min(tl.where(is_used_TE, scores_TE, float("inf")), 1)
        is_near_TE = (last_used_T[:, None] - scores_TE < NEAR_TIE) & is_scored_E[None, :]
        near_T = tl.sum(is_near_TE.to(tl.int32), 1) + E - SCORED
        is_tie_T = (near_T > count_T).to(tl.int32)
        surprise_TE = -tl.log(tl.maximum(probs_TE, TINY)) * probs_TE
        entropy_T = tl.sum(tl.where(is_scored_E[None, :], surprise_TE, 0.0).to(tl.float64), 1)
        off_mean_TE = tl.where(is_scored_E[None, :], probs_TE - 1.0 / SCORED, 0.0)
        variance_T = tl.sum((off_mean_TE * off_mean_TE).to(tl.float64), 1) / SCORED
        entropy_T, variance_T = _whole(entropy_T * UNIT), _whole(variance_T * E * UNIT)

    for modality in tl.static_range(2):
        is_counted_T = is_inside_T & (segment_T >= 0 if modality == 1 else segment_T == -1)
        counted_T = is_counted_T.to(tl.int32)
        tokens = tl.sum(counted_T, 0)
        if tokens > 0:
            row_ptr = load_ptr + modality * (2 * E + SUMS)
            sums_ptr = row_ptr + E
            uses_E = tl.sum(uses_TE * counted_T[:, None], 0).to(tl.int64)
            tl.atomic_add(row_ptr + expert_E, uses_E, expert_E < E)
            is_of_number_TE = (count_T - 1)[:, None] == expert_E[None, :]
            of_number_E = tl.sum(is_of_number_TE.to(tl.int32) * counted_T[:, None], 0).to(tl.int64)
            tl.atomic_add(sums_ptr + SUMS + expert_E, of_number_E, expert_E < E)
            tl.atomic_add(sums_ptr, tokens.to(tl.int64))
            tl.atomic_add(sums_ptr + 1, tl.sum(is_tail_T * counted_T, 0).to(tl.int64))
            if logits_ptr is not None:
                tl.atomic_add(sums_ptr + 2, tokens.to(tl.int64))
                tl.atomic_add(sums_ptr + 3, tl.sum(is_tie_T * counted_T, 0).to(tl.int64))
                tl.atomic_add(sums_ptr + 4, tl.sum(tl.where(is_counted_T, entropy_T, 0), 0))
                tl.atomic_add(sums_ptr + 5, tl.sum(tl.where(is_counted_T, variance_T, 0), 0))


def count_expert_load_fused(
    load_MC: Tensor,
    experts_TA: Tensor,
    count_T: Tensor | None,
    tail_T: Tensor | None,
    segment_T: Tensor | None,
    confidence: Confidence | None,
) -> None:
    """What `count_expert_load` does, with contiguous tensors of a GPU."""
    tokens, slots = experts_TA.shape
    experts = experts_of(load_MC)
    logits_TE = None if confidence is None else confidence.logits_TE.contiguous()
    scores_TE = (
        None if confidence is None or confidence.scores_TE is None else confidence.scores_TE.contiguous()
    )
    constant = constants(experts)
    _count[(triton.cdiv(tokens, constant["BLOCK_T"]),)](
        load_MC,
        experts_TA.contiguous(),
        count_T,
        tail_T,
        segment_T,
        logits_TE,
        scores_TE,
        tokens,
        experts,
        experts if logits_TE is None else logits_TE.shape[1],
        slots,
        **constant,
    )
