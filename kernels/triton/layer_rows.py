"""`prismoe.kernels.layer_rows` in one Triton launch.

Tested by Triton's interpreter and compiled ahead for five GPUs (`compile_ahead`); not yet run on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.layer_rows import LayerRows, write_rows

BLOCK_T = 16
NAN = tl.constexpr(float("nan"))


@triton.jit
def _copy(from_ptr, to_ptr, from_row_T, to_row_T, is_inside_T, COLUMNS, TO_COLUMNS, BLOCK: tl.constexpr):
    """Copies the first `COLUMNS` columns of some rows, one block of columns at a time."""
    for start in range(0, COLUMNS, BLOCK):
        column_X = start + tl.arange(0, BLOCK)
        inside_TX = is_inside_T[:, None] & (column_X < COLUMNS)[None, :]
        value_TX = tl.load(from_ptr + from_row_T[:, None] * COLUMNS + column_X[None, :], inside_TX, 0)
        to_TX = to_ptr + to_row_T[:, None] * TO_COLUMNS + column_X[None, :]
        tl.store(to_TX, value_TX.to(to_ptr.dtype.element_ty), inside_TX)


@triton.jit(do_not_specialize=["T", "S"])
def _write(experts_ptr, weights_ptr, count_ptr, tail_ptr, logits_ptr, scores_ptr, sampled_ptr,
           to_experts_ptr, to_weights_ptr, to_count_ptr, to_tail_ptr, to_logits_ptr, to_scores_ptr,
           T, S, A, E, TO_A, TO_E,
           BLOCK_T: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_E: tl.constexpr):  # fmt: skip
    """Writes a block of tokens and a block of sampled ones; `write_rows` documents the meaning of None."""
    token_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_inside_T = token_T < T
    _copy(experts_ptr, to_experts_ptr, token_T, token_T, is_inside_T, A, TO_A, BLOCK_A)
    if weights_ptr is not None:
        _copy(weights_ptr, to_weights_ptr, token_T, token_T, is_inside_T, A, TO_A, BLOCK_A)
    else:
        slot_A = tl.arange(0, BLOCK_A)
        unknown_TA = tl.full([BLOCK_T, BLOCK_A], NAN, tl.float32)
        at_TA = token_T[:, None] * TO_A + slot_A[None, :]
        tl.store(to_weights_ptr + at_TA, unknown_TA, is_inside_T[:, None] & (slot_A < A)[None, :])
    if to_count_ptr is not None:
        count_T = tl.full([BLOCK_T], 0, tl.int32) + A
        if count_ptr is not None:
            count_T = tl.load(count_ptr + token_T, is_inside_T, 0).to(tl.int32)
        tl.store(to_count_ptr + token_T, count_T, is_inside_T)
    if to_tail_ptr is not None:
        tail_T = tl.full([BLOCK_T], 0, tl.int8)
        if tail_ptr is not None:
            tail_T = tl.load(tail_ptr + token_T, is_inside_T, 0).to(tl.int8)
        tl.store(to_tail_ptr + token_T, tail_T, is_inside_T)
    if to_logits_ptr is not None and logits_ptr is not None:
        is_sampled_T = token_T < S
        row_T = token_T.to(tl.int64)
        if T > S:
            row_T = tl.minimum(tl.load(sampled_ptr + token_T, is_sampled_T, 0), T - 1)
        _copy(logits_ptr, to_logits_ptr, row_T, token_T, is_sampled_T & is_inside_T, E, TO_E, BLOCK_E)
        if to_scores_ptr is not None and scores_ptr is not None:
            _copy(scores_ptr, to_scores_ptr, row_T, token_T, is_sampled_T & is_inside_T, E, TO_E, BLOCK_E)


def write_rows_fused(
    to: LayerRows,
    experts_TA: Tensor,
    weights_TA: Tensor | None,
    count_T: Tensor | None = None,
    tail_T: Tensor | None = None,
    confidence: Confidence | None = None,
) -> None:
    """Do the same as `write_rows`, on a GPU."""
    num_tokens, slots = experts_TA.shape
    logits_TE, scores_TE = (None, None) if confidence is None else confidence
    experts = 1 if logits_TE is None else logits_TE.shape[1]
    _write[(triton.cdiv(num_tokens, BLOCK_T),)](
        experts_TA.contiguous(),
        None if weights_TA is None else weights_TA.contiguous(),
        count_T,
        _bytes(tail_T),
        None if logits_TE is None else logits_TE.contiguous(),
        None if scores_TE is None else scores_TE.contiguous(),
        to.sampled_S,
        to.experts_TA,
        to.weights_TA,
        to.count_T,
        _bytes(to.tail_T),
        to.logits_SE,
        to.scores_SE,
        num_tokens,
        len(to.sampled_S),
        slots,
        experts,
        to.experts_TA.shape[1],
        1 if to.logits_SE is None else to.logits_SE.shape[1],
        **constants(slots, experts),
    )


def constants(slots: int, experts: int) -> dict[str, int]:
    """The block sizes that the kernel is compiled for."""
    return {
        "BLOCK_T": BLOCK_T,
        "BLOCK_A": triton.next_power_of_2(slots),
        "BLOCK_E": min(128, triton.next_power_of_2(experts)),
    }


def _bytes(flags: Tensor | None) -> Tensor | None:
    return None if flags is None else flags.view(torch.int8)


def check_write_rows(device: torch.device | str) -> None:
    """Write a small and a large step fused and plain. Raises AssertionError where they differ."""
    for num_tokens in (5, 300):
        fused, plain = (_rows(device) for _ in range(2))
        generator = torch.Generator().manual_seed(num_tokens)
        logits_TE = torch.randn(num_tokens, 7, generator=generator).to(device)
        step = (
            logits_TE.argsort(dim=1)[:, :3].int(),
            logits_TE[:, :3],
            torch.arange(num_tokens, device=device, dtype=torch.int32) % 3 + 1,
            logits_TE[:, 0] > 0,
            Confidence(logits_TE, -logits_TE),
        )
        write_rows_fused(fused, *step)
        write_rows(plain, *step)
        for actual, expected in zip(fused, plain, strict=True):
            assert actual is not None and expected is not None and torch.equal(actual, expected), (
                "rows differ"
            )


def _rows(device: torch.device | str) -> LayerRows:
    """Rows of a layer of 8 experts and 4 slots, in buffers of a step of at most 320 tokens."""
    with torch.device(device):
        return LayerRows(
            torch.arange(100) * 3,
            torch.zeros(320, 4, dtype=torch.int32),
            torch.zeros(320, 4, dtype=torch.float32),
            torch.zeros(320, dtype=torch.int32),
            torch.zeros(320, dtype=torch.bool),
            torch.zeros(100, 8, dtype=torch.float32),
            torch.zeros(100, 8, dtype=torch.float32),
        )
