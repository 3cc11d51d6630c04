"""Ragged experts on a GPU, in Triton: a grouped product over only the used (token, expert) pairs.

Pairs are sorted by expert; a program computes blocks of rows, each block of one expert. The host never waits:
the number of pairs is read on the device. Each token's sum runs over its slots in order, so a token may name
an expert twice, and no float is added atomically. A CUDA graph can capture it: after one small and one large
step, no other number of tokens or slots compiles anything.

Tested by Triton's interpreter and compiled ahead for five GPUs (`compile_ahead`); not yet run on a GPU.
"""

from typing import Literal, TypedDict

import torch
import triton
import triton.language as tl
from torch import Tensor

Activation = Literal["silu", "gelu_tanh"]

MOST_ROWS = 65536
"""The most rows of a workspace. vLLM's has as many with 8 slots and 8192 tokens, the most that `vllm serve`
puts into a step on an H100 by default."""
MOST_BLOCKS = 128
"""The most blocks of rows with a program each; further blocks take turns. Most tokens use few of 64 slots, so
most programs would start for nothing if every possible block had one."""
TOKENS_ALIGNED = 16
"""The number of tokens in a chunk is a multiple of this, so that kernels compiled for aligned pointers serve
each chunk."""


class Tile(TypedDict):
    """The block that a program computes at a time, and its warps. Gate and up get half the columns each."""

    BLOCK_R: int
    BLOCK_N: int
    BLOCK_K: int
    num_warps: int
    num_stages: int


FLOAT32_TILE = Tile(BLOCK_R=64, BLOCK_N=64, BLOCK_K=32, num_warps=8, num_stages=3)
FEW_ROWS_TILE = Tile(BLOCK_R=16, BLOCK_N=64, BLOCK_K=128, num_warps=4, num_stages=4)
TILE = Tile(BLOCK_R=128, BLOCK_N=128, BLOCK_K=64, num_warps=8, num_stages=3)


def tile_for(dtype: torch.dtype, tokens: int, experts: int) -> Tile:
    """Choose the tile by what the host knows: the numbers of tokens and experts.

    With four experts per token, an expert gets 16 rows from 4E tokens. Not measured. With these tiles a
    thread spills at most 8 bytes (docs/kernels.md), and the 99 KiB of shared memory that any GPU from sm_80
    on gives a program are enough.
    """
    if dtype == torch.float32:  # no tensor core computes float32 products
        return FLOAT32_TILE
    return FEW_ROWS_TILE if tokens <= 4 * experts else TILE


@triton.jit
def _program(BLOCK_N: tl.constexpr):
    """This program's first block of rows, and its columns.

    Programs that run at the same time share eight blocks of rows and a few of columns, so that both fit into
    the cache.
    """
    rows, columns = tl.num_programs(1), tl.num_programs(0)
    block, column = tl.swizzle2d(tl.program_id(1), tl.program_id(0), rows, columns, 8)
    return block, column * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def _blocks(ends_ptr, E, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr):
    """Each expert's first row, end of rows, and number of blocks."""
    expert_E = tl.arange(0, BLOCK_E)
    end_E = tl.load(ends_ptr + expert_E, expert_E < E, 0)
    begin_E = tl.load(ends_ptr + expert_E - 1, (expert_E > 0) & (expert_E < E), 0)
    return begin_E, end_E, (end_E - begin_E + BLOCK_R - 1) // BLOCK_R


@triton.jit
def _number_of_blocks(ends_ptr, E, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr):
    """The number of blocks of rows; each block belongs to one expert."""
    _, _, blocks_E = _blocks(ends_ptr, E, BLOCK_R, BLOCK_E)
    return tl.sum(blocks_E)


@triton.jit
def _block_of_rows(ends_ptr, block, E, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr):
    """The block's expert, its rows, and the end of the expert's rows."""
    begin_E, end_E, blocks_E = _blocks(ends_ptr, E, BLOCK_R, BLOCK_E)
    first_block_E = tl.cumsum(blocks_E) - blocks_E
    is_it_E = (first_block_E <= block) & (block < first_block_E + blocks_E)
    expert = tl.sum(tl.where(is_it_E, tl.arange(0, BLOCK_E), 0))
    first = tl.sum(tl.where(is_it_E, begin_E + (block - first_block_E) * BLOCK_R, 0))
    return expert.to(tl.int64), first + tl.arange(0, BLOCK_R), tl.sum(tl.where(is_it_E, end_E, 0))


@triton.jit(do_not_specialize=["A"])
def _up(hidden_ptr, w13_ptr, b13_ptr, pair_ptr, ends_ptr, output_ptr, A, D, F, E,
        IS_GATED: tl.constexpr, HAS_BIAS: tl.constexpr, IS_GELU: tl.constexpr,
        BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
        BLOCK_E: tl.constexpr):  # fmt: skip
    """Computes activation(gate(x)) · up(x), or activation(up(x)), of the used pairs: `[P, F]`."""
    first_block, column_N = _program(BLOCK_N)
    blocks = _number_of_blocks(ends_ptr, E, BLOCK_R, BLOCK_E)
    rows_of_expert = 2 * F if IS_GATED else F
    # Without loop-invariant code motion here and in _down: the hoisted values would not fit into registers.
    for block in tl.range(first_block, blocks, tl.num_programs(1), disable_licm=True):
        expert, row_R, last = _block_of_rows(ends_ptr, block, E, BLOCK_R, BLOCK_E)
        token_R = tl.load(pair_ptr + row_R, row_R < last, 0) // A
        weights = w13_ptr + expert * rows_of_expert * D
        gate_RN = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
        up_RN = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
        for start in range(0, D, BLOCK_K):
            inner_K = start + tl.arange(0, BLOCK_K)
            inside_RK = (row_R < last)[:, None] & (inner_K < D)[None, :]
            inside_KN = (inner_K < D)[:, None] & (column_N < F)[None, :]
            hidden_RK = tl.load(hidden_ptr + token_R[:, None] * D + inner_K[None, :], inside_RK, 0.0)
            gate = weights + column_N[None, :] * D + inner_K[:, None]
            gate_RN = tl.dot(hidden_RK, tl.load(gate, inside_KN, 0.0), gate_RN, input_precision="ieee")
            if IS_GATED:
                up_KN = tl.load(gate + F * D, inside_KN, 0.0)
                up_RN = tl.dot(hidden_RK, up_KN, up_RN, input_precision="ieee")
        if HAS_BIAS:
            bias = b13_ptr + expert * rows_of_expert + column_N
            gate_RN += tl.load(bias, column_N < F, 0.0).to(tl.float32)[None, :]
            if IS_GATED:
                up_RN += tl.load(bias + F, column_N < F, 0.0).to(tl.float32)[None, :]
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
          BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
          BLOCK_E: tl.constexpr):  # fmt: skip
    """Computes down(h) of the used pairs: `[P, D]`."""
    first_block, column_N = _program(BLOCK_N)
    blocks = _number_of_blocks(ends_ptr, E, BLOCK_R, BLOCK_E)
    for block in tl.range(first_block, blocks, tl.num_programs(1), disable_licm=True):
        expert, row_R, last = _block_of_rows(ends_ptr, block, E, BLOCK_R, BLOCK_E)
        weights = w2_ptr + expert * D * F
        sum_RN = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
        for start in range(0, F, BLOCK_K):
            inner_K = start + tl.arange(0, BLOCK_K)
            inside_RK = (row_R < last)[:, None] & (inner_K < F)[None, :]
            inside_KN = (inner_K < F)[:, None] & (column_N < D)[None, :]
            hidden = hidden_ptr + row_R[:, None].to(tl.int64) * F + inner_K[None, :]
            weight = weights + column_N[None, :] * F + inner_K[:, None]
            hidden_RK, weight_KN = tl.load(hidden, inside_RK, 0.0), tl.load(weight, inside_KN, 0.0)
            sum_RN = tl.dot(hidden_RK, weight_KN, sum_RN, input_precision="ieee")
        if HAS_BIAS:
            bias_N = tl.load(b2_ptr + expert * D + column_N, column_N < D, 0.0)
            sum_RN += bias_N.to(tl.float32)[None, :]
        inside_RN = (row_R < last)[:, None] & (column_N < D)[None, :]
        output_RN = output_ptr + row_R[:, None].to(tl.int64) * D + column_N[None, :]
        tl.store(output_RN, sum_RN.to(output_ptr.dtype.element_ty), inside_RN)


@triton.jit(do_not_specialize=["A"])
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


def workspace_rows(tokens: int, slots: int, most_rows: int) -> int:
    """The rows of a workspace: for all tokens' pairs, or for those of a chunk of up to about `most_rows`."""
    chunk = max(most_rows // slots // TOKENS_ALIGNED, 1) * TOKENS_ALIGNED
    return min(tokens, chunk) * slots


def grouped_experts(
    hidden_TD: Tensor,
    weights_TA: Tensor,
    experts_TA: Tensor,
    w13: Tensor,
    w2_EDF: Tensor,
    b13: Tensor | None,
    b2_ED: Tensor | None,
    activation: Activation,
    workspace: Tensor,
    output_TD: Tensor,
) -> None:
    """Write the weighted sum of each token's used experts to `output_TD`; a slot of weight 0 is not used.

    `w13` is `[E, 2F, D]`, gate before up, or `[E, F, D]` without a gate. `workspace` has `workspace_rows`
    times D + F elements of the hidden states' type; the tokens are computed in chunks that fit into it.
    """
    tokens, hidden_size = hidden_TD.shape
    slots = weights_TA.shape[1]
    experts, _, width = w2_EDF.shape
    rows = workspace.numel() // (hidden_size + width)
    output_PD, hidden_PF = workspace.view(-1).split([rows * hidden_size, rows * width])
    is_gated = w13.shape[1] == 2 * width
    tile = tile_for(hidden_TD.dtype, tokens, experts)
    up_tile: Tile = {**tile, "BLOCK_N": tile["BLOCK_N"] // (1 + is_gated)}
    blocks = min(triton.cdiv(rows, tile["BLOCK_R"]) + experts, MOST_BLOCKS)
    block_experts = triton.next_power_of_2(experts)
    for start in range(0, tokens, rows // slots):
        chunk = slice(start, start + rows // slots)
        pair_P, row_P, ends_E = _sorted_by_expert(weights_TA[chunk], experts_TA[chunk], experts)
        _up[(triton.cdiv(width, up_tile["BLOCK_N"]), blocks)](
            hidden_TD[chunk],
            w13,
            b13,
            pair_P,
            ends_E,
            hidden_PF,
            slots,
            hidden_size,
            width,
            experts,
            IS_GATED=is_gated,
            HAS_BIAS=b13 is not None,
            IS_GELU=activation == "gelu_tanh",
            BLOCK_E=block_experts,
            **up_tile,
        )
        _down[(triton.cdiv(hidden_size, tile["BLOCK_N"]), blocks)](
            hidden_PF,
            w2_EDF,
            b2_ED,
            ends_E,
            output_PD,
            hidden_size,
            width,
            experts,
            HAS_BIAS=b2_ED is not None,
            BLOCK_E=block_experts,
            **tile,
        )
        _sum[(len(weights_TA[chunk]), triton.cdiv(hidden_size, 128))](
            output_PD, row_P, weights_TA[chunk], output_TD[chunk], slots, hidden_size, BLOCK_N=128
        )


def _sorted_by_expert(weights_TA: Tensor, experts_TA: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pair of each row (unused pairs last), the row of each pair, and the end of each expert's rows."""
    expert_P = torch.where(weights_TA != 0, experts_TA, experts).flatten()
    sorted_P, pair_P = expert_P.sort(stable=True)
    row_P = torch.empty_like(pair_P).scatter_(0, pair_P, torch.arange(len(pair_P), device=pair_P.device))
    each_E = torch.arange(experts, device=expert_P.device, dtype=expert_P.dtype)
    return pair_P, row_P, torch.searchsorted(sorted_P, each_E, right=True, out_int32=True)
