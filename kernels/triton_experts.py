"""Ragged experts on a GPU: a grouped product over just the used (token, expert) pairs, in Triton.

Pairs are sorted by expert; a program takes a block of rows of one expert. Nothing waits for the host: the
grid covers the most pairs there can be, and programs beyond the used ones end at once. Each token's sum runs
over its slots in order, so a token may name an expert twice, and no float is added atomically.

Tested by Triton's interpreter and compiled ahead for sm_80, sm_90 and sm_100; not yet run on a GPU.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_R, BLOCK_N, BLOCK_K = 64, 64, 32


@triton.jit
def _block_of_rows(ends_ptr, E, BLOCK_R: tl.constexpr):
    """This program's expert, its first row and the end of the expert's rows; expert E if there is none."""
    program = tl.program_id(0)
    expert, first, last = E, 0, 0
    begin, blocks = 0, 0
    for candidate in range(E):
        end = tl.load(ends_ptr + candidate)
        blocks_here = (end - begin + BLOCK_R - 1) // BLOCK_R
        is_it = (program >= blocks) & (program < blocks + blocks_here)
        expert = tl.where(is_it, candidate, expert)
        first = tl.where(is_it, begin + (program - blocks) * BLOCK_R, first)
        last = tl.where(is_it, end, last)
        blocks += blocks_here
        begin = end
    return expert, first, last


@triton.jit
def _up(hidden_ptr, w13_ptr, b13_ptr, pair_ptr, ends_ptr, output_ptr, A, D, F, E,
        IS_GATED: tl.constexpr, HAS_BIAS: tl.constexpr, IS_GELU: tl.constexpr,
        BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """activation(gate(x)) · up(x), or activation(up(x)), for a block of pairs: `[P, F]`."""
    expert, first, last = _block_of_rows(ends_ptr, E, BLOCK_R)
    if expert == E:
        return
    row_R = first + tl.arange(0, BLOCK_R)
    token_R = tl.load(pair_ptr + row_R, row_R < last, 0) // A
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows_of_expert = 2 * F if IS_GATED else F
    w13_ptr += expert.to(tl.int64) * rows_of_expert * D
    gate_RN = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    up_RN = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for start in range(0, D, BLOCK_K):
        inner_K = start + tl.arange(0, BLOCK_K)
        inside_RK = (row_R < last)[:, None] & (inner_K < D)[None, :]
        inside_KN = (inner_K < D)[:, None] & (column_N < F)[None, :]
        hidden_RK = tl.load(hidden_ptr + token_R[:, None].to(tl.int64) * D + inner_K[None, :], inside_RK, 0.0)
        weight_ptr = w13_ptr + column_N[None, :] * D + inner_K[:, None]
        gate_RN = tl.dot(hidden_RK, tl.load(weight_ptr, inside_KN, 0.0), gate_RN, input_precision="ieee")
        if IS_GATED:
            up_KN = tl.load(weight_ptr + F * D, inside_KN, 0.0)
            up_RN = tl.dot(hidden_RK, up_KN, up_RN, input_precision="ieee")
    if HAS_BIAS:
        b13_ptr += expert * rows_of_expert
        gate_RN += tl.load(b13_ptr + column_N, column_N < F, 0.0).to(tl.float32)[None, :]
        if IS_GATED:
            up_RN += tl.load(b13_ptr + F + column_N, column_N < F, 0.0).to(tl.float32)[None, :]
    if IS_GELU:  # its tanh approximation: tanh(u) = 2 sigmoid(2u) - 1
        twice_u_RN = 1.5957691216057308 * (gate_RN + 0.044715 * gate_RN * gate_RN * gate_RN)
        hidden_RN = gate_RN * tl.sigmoid(twice_u_RN)
    else:
        hidden_RN = gate_RN * tl.sigmoid(gate_RN)
    if IS_GATED:
        hidden_RN *= up_RN
    inside_RN = (row_R < last)[:, None] & (column_N < F)[None, :]
    output_RN = output_ptr + row_R[:, None].to(tl.int64) * F + column_N[None, :]
    tl.store(output_RN, hidden_RN.to(output_ptr.dtype.element_ty), inside_RN)


@triton.jit
def _down(hidden_ptr, w2_ptr, b2_ptr, ends_ptr, output_ptr, D, F, E, HAS_BIAS: tl.constexpr,
          BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):  # fmt: skip
    """down(h) for a block of pairs: `[P, D]`."""
    expert, first, last = _block_of_rows(ends_ptr, E, BLOCK_R)
    if expert == E:
        return
    row_R = first + tl.arange(0, BLOCK_R)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    w2_ptr += expert.to(tl.int64) * D * F
    sum_RN = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for start in range(0, F, BLOCK_K):
        inner_K = start + tl.arange(0, BLOCK_K)
        inside_RK = (row_R < last)[:, None] & (inner_K < F)[None, :]
        inside_KN = (inner_K < F)[:, None] & (column_N < D)[None, :]
        hidden_RK = tl.load(hidden_ptr + row_R[:, None].to(tl.int64) * F + inner_K[None, :], inside_RK, 0.0)
        weight_KN = tl.load(w2_ptr + column_N[None, :] * F + inner_K[:, None], inside_KN, 0.0)
        sum_RN = tl.dot(hidden_RK, weight_KN, sum_RN, input_precision="ieee")
    if HAS_BIAS:
        sum_RN += tl.load(b2_ptr + expert * D + column_N, column_N < D, 0.0).to(tl.float32)[None, :]
    inside_RN = (row_R < last)[:, None] & (column_N < D)[None, :]
    output_RN = output_ptr + row_R[:, None].to(tl.int64) * D + column_N[None, :]
    tl.store(output_RN, sum_RN.to(output_ptr.dtype.element_ty), inside_RN)


@triton.jit
def _sum(pairs_ptr, row_ptr, weights_ptr, output_ptr, A, D, BLOCK_N: tl.constexpr):
    """Each token's weighted sum over its slots, in their order."""
    token = tl.program_id(0)
    column_N = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    sum_N = tl.zeros([BLOCK_N], tl.float32)
    for slot in range(A):
        weight = tl.load(weights_ptr + token * A + slot)
        if weight != 0:
            row = tl.load(row_ptr + token * A + slot).to(tl.int64)
            sum_N += weight * tl.load(pairs_ptr + row * D + column_N, column_N < D, 0.0).to(tl.float32)
    output_N = output_ptr + token.to(tl.int64) * D + column_N
    tl.store(output_N, sum_N.to(output_ptr.dtype.element_ty), column_N < D)


def grouped_experts(
    hidden_TD: Tensor,
    weights_TA: Tensor,
    experts_TA: Tensor,
    w13: Tensor,
    w2_EDF: Tensor,
    b13: Tensor | None,
    b2_ED: Tensor | None,
    activation: Literal["silu", "gelu_tanh"],
    most_pairs: int,
) -> Tensor:
    """The weighted sum of each token's used experts, `[T, D]`; a slot of weight 0 is not used.

    `w13` is `[E, 2F, D]`, gate before up, or `[E, F, D]` without a gate. `most_pairs` is the most pairs that
    can be used, known on the host; more of them corrupt memory.
    """
    tokens, hidden_size = hidden_TD.shape
    slots = weights_TA.shape[1]
    experts, _, width = w2_EDF.shape
    expert_P = torch.where(weights_TA != 0, experts_TA, experts).flatten()
    sorted_P, pair_P = expert_P.sort(stable=True)
    each_E = torch.arange(experts, device=expert_P.device, dtype=expert_P.dtype)
    ends_E = torch.searchsorted(sorted_P, each_E, right=True, out_int32=True)
    row_P = torch.empty_like(pair_P).scatter_(0, pair_P, torch.arange(len(pair_P), device=pair_P.device))
    hidden_PF = hidden_TD.new_empty(most_pairs, width)
    output_PD = hidden_TD.new_empty(most_pairs, hidden_size)
    output_TD = torch.empty_like(hidden_TD)
    blocks = triton.cdiv(most_pairs, BLOCK_R) + experts
    tiles = {"BLOCK_R": BLOCK_R, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K}
    _up[(blocks, triton.cdiv(width, BLOCK_N))](
        hidden_TD,
        w13,
        b13,
        pair_P,
        ends_E,
        hidden_PF,
        slots,
        hidden_size,
        width,
        experts,
        IS_GATED=w13.shape[1] == 2 * width,
        HAS_BIAS=b13 is not None,
        IS_GELU=activation == "gelu_tanh",
        **tiles,
    )
    _down[(blocks, triton.cdiv(hidden_size, BLOCK_N))](
        hidden_PF,
        w2_EDF,
        b2_ED,
        ends_E,
        output_PD,
        hidden_size,
        width,
        experts,
        HAS_BIAS=b2_ED is not None,
        **tiles,
    )
    _sum[(tokens, triton.cdiv(hidden_size, 128))](
        output_PD, row_P, weights_TA, output_TD, slots, hidden_size, BLOCK_N=128
    )
    return output_TD
