"""LTDR's router and top-k in two Triton launches: what `kernels.routing` and `kernels.expert_load` do, fused.

The first launch gives each token's probabilities and RPV, and each block's sum of RPV per image; the second
adds up those sums in the order of the blocks, flags tail tokens, picks experts and counts. Floating-point
sums have a fixed order, so equal inputs give equal bits on every rank; only integers are added atomically.

Tested by Triton's interpreter and compiled ahead for sm_80, sm_90 and sm_100; not yet run on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from prismoe.kernels.expert_load import NEAR_TIE, SUMS, UNIT, experts_of

BLOCK_T, BLOCK_S = 64, 8
COUNTERS = {"SUMS": len(SUMS), "NEAR_TIE": NEAR_TIE, "UNIT": UNIT}


@triton.jit
def _probabilities(logits_ptr, segment_ptr, probs_ptr, rpv_ptr, sums_ptr, sizes_ptr, T, E, S,
                   BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """Softmax and RPV of a block of tokens, and its part of each image's sum of RPV."""
    block = tl.program_id(0)
    token_T = block * BLOCK_T + tl.arange(0, BLOCK_T)
    expert_E = tl.arange(0, BLOCK_E)
    inside_TE = (token_T < T)[:, None] & (expert_E < E)[None, :]
    logits_TE = tl.load(logits_ptr + token_T[:, None] * E + expert_E[None, :], inside_TE, float("-inf"))
    logits_TE = tl.where((token_T < T)[:, None], logits_TE, 0.0)
    exp_TE = tl.exp(logits_TE - tl.max(logits_TE, 1)[:, None])
    exp_TE = tl.where((expert_E < E)[None, :], exp_TE, 0.0)
    probs_TE = exp_TE / tl.sum(exp_TE, 1)[:, None]
    tl.store(probs_ptr + token_T[:, None] * E + expert_E[None, :], probs_TE, inside_TE)
    off_mean_TE = tl.where((expert_E < E)[None, :], probs_TE - 1.0 / E, 0.0)
    rpv_T = tl.sum(off_mean_TE * off_mean_TE, 1) / E
    tl.store(rpv_ptr + token_T, rpv_T, token_T < T)
    segment_T = tl.load(segment_ptr + token_T, token_T < T, -1)
    for first in range(0, S, BLOCK_S):
        image_S = first + tl.arange(0, BLOCK_S)
        member_TS = segment_T[:, None] == image_S[None, :]
        sum_S = tl.sum(tl.where(member_TS, rpv_T[:, None].to(tl.float64), 0.0), 0)
        tl.store(sums_ptr + block * S + image_S, sum_S, image_S < S)
        tl.store(sizes_ptr + block * S + image_S, tl.sum(member_TS.to(tl.int32), 0), image_S < S)


@triton.jit
def _decide(probs_ptr, rpv_ptr, segment_ptr, sums_ptr, sizes_ptr, experts_ptr, weights_ptr, load_ptr,
            T, E, S, blocks, top_k, tail_experts, DROP_UNUSED: tl.constexpr, RENORMALIZE: tl.constexpr,
            A: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, SUMS: tl.constexpr,
            NEAR_TIE: tl.constexpr, UNIT: tl.constexpr):  # fmt: skip
    """Tail flags, experts, weights and counts of a block of tokens."""
    token_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside_T = token_T < T
    segment_T = tl.load(segment_ptr + token_T, inside_T, -2).to(tl.int32)
    is_vision_T = segment_T >= 0
    sum_T = tl.zeros([BLOCK_T], tl.float64)
    size_T = tl.zeros([BLOCK_T], tl.int32)
    for block in range(blocks):
        sum_T += tl.load(sums_ptr + block * S + segment_T, is_vision_T, 0.0)
        size_T += tl.load(sizes_ptr + block * S + segment_T, is_vision_T, 0)
    rpv_T = tl.load(rpv_ptr + token_T, inside_T, 0.0).to(tl.float64)
    is_tail_T = is_vision_T & (rpv_T > sum_T / tl.maximum(size_T, 1).to(tl.float64))
    count_T = tl.where(is_tail_T, tail_experts, top_k)

    expert_E = tl.arange(0, BLOCK_E)
    is_expert_E = expert_E < E
    probs_TE = tl.load(
        probs_ptr + token_T[:, None] * E + expert_E[None, :], inside_T[:, None] & is_expert_E[None, :], -1.0
    )
    total_T = tl.full([BLOCK_T], 1.0, tl.float32)
    if RENORMALIZE:
        total_T = tl.zeros([BLOCK_T], tl.float32)
        left_TE = probs_TE
        for slot in tl.static_range(A):
            total_T += tl.where(slot < count_T, tl.max(left_TE, 1), 0.0)
            expert_T = tl.argmax(left_TE, 1, tie_break_left=True)
            left_TE = tl.where(expert_E[None, :] == expert_T[:, None], -1.0, left_TE)
    left_TE = probs_TE
    first_T = tl.argmax(probs_TE, 1, tie_break_left=True).to(tl.int32)
    unused_T = tl.full([BLOCK_T], -1, tl.int32) if DROP_UNUSED else first_T
    used_TE = tl.zeros([BLOCK_T, BLOCK_E], tl.int32)
    last_used_T = tl.zeros([BLOCK_T], tl.float64)
    first_unused_T = tl.full([BLOCK_T], -1.0, tl.float64)
    for slot in tl.static_range(A):
        is_used_T = slot < count_T
        best_T = tl.max(left_TE, 1)
        last_used_T = tl.where(slot == count_T - 1, best_T.to(tl.float64), last_used_T)
        first_unused_T = tl.where(slot == count_T, best_T.to(tl.float64), first_unused_T)
        weight_T = tl.where(is_used_T, best_T / total_T, 0.0)
        expert_T = tl.argmax(left_TE, 1, tie_break_left=True).to(tl.int32)
        is_it_TE = expert_E[None, :] == expert_T[:, None]
        left_TE = tl.where(is_it_TE, -1.0, left_TE)
        used_TE += (is_it_TE & (is_used_T & inside_T)[:, None]).to(tl.int32)
        tl.store(experts_ptr + token_T * A + slot, tl.where(is_used_T, expert_T, unused_T), inside_T)
        tl.store(weights_ptr + token_T * A + slot, weight_T, inside_T)
    first_unused_T = tl.where(count_T == A, tl.max(left_TE, 1).to(tl.float64), first_unused_T)
    is_tie_T = last_used_T - first_unused_T < NEAR_TIE
    probs_TE = tl.where(is_expert_E[None, :], probs_TE, 0.0).to(tl.float64)
    entropy_T = -tl.sum(probs_TE * tl.log(tl.where(probs_TE > 0, probs_TE, 1.0)), 1)
    entropy_T = tl.floor(entropy_T * UNIT + 0.5).to(tl.int64)
    off_mean_TE = tl.where(is_expert_E[None, :], probs_TE - 1.0 / E, 0.0)
    variance_T = tl.floor(tl.sum(off_mean_TE * off_mean_TE, 1) * UNIT + 0.5).to(tl.int64)  # RPV · E

    for modality in tl.static_range(2):
        is_counted_T = inside_T & (is_vision_T if modality == 1 else segment_T == -1)
        row_ptr = load_ptr + modality * (2 * E + SUMS)
        pairs_E = tl.sum(used_TE * is_counted_T[:, None].to(tl.int32), 0).to(tl.int64)
        tl.atomic_add(row_ptr + expert_E, pairs_E, is_expert_E)
        tokens = tl.sum(is_counted_T.to(tl.int32), 0).to(tl.int64)
        tl.atomic_add(row_ptr + E, tokens)
        tl.atomic_add(row_ptr + E + 1, tl.sum((is_counted_T & is_tail_T).to(tl.int32), 0).to(tl.int64))
        tl.atomic_add(row_ptr + E + 2, tokens)
        tl.atomic_add(row_ptr + E + 3, tl.sum((is_counted_T & is_tie_T).to(tl.int32), 0).to(tl.int64))
        tl.atomic_add(row_ptr + E + 4, tl.sum(tl.where(is_counted_T, entropy_T, 0), 0))
        tl.atomic_add(row_ptr + E + 5, tl.sum(tl.where(is_counted_T, variance_T, 0), 0))
        is_of_count_TE = (count_T - 1)[:, None] == expert_E[None, :]
        of_count_E = tl.sum((is_of_count_TE & is_counted_T[:, None]).to(tl.int32), 0).to(tl.int64)
        tl.atomic_add(row_ptr + E + SUMS + expert_E, of_count_E, is_expert_E)


def ltdr_router(
    logits_TE: Tensor,
    segment_T: Tensor,
    load_MC: Tensor,
    images: int,
    top_k: int,
    tail_experts: int,
    renormalize: bool,
    drop_unused: bool = False,
) -> tuple[Tensor, Tensor]:
    """Route T tokens and add their load to `load_MC`; a step holds at most `images` images.

    Returns `experts_TA` (int32) and `weights_TA` (float32) with A = `tail_experts`, as
    `prismoe.kernels.routing.top_experts_by_count` does. With `drop_unused` an unused slot is -1, which vLLM's
    Triton experts skip where they are given an expert map, else it repeats the token's first expert.
    """
    tokens, experts = logits_TE.shape
    assert experts_of(load_MC) == experts
    blocks = triton.cdiv(tokens, BLOCK_T)
    probs_TE = torch.empty_like(logits_TE)
    rpv_T = logits_TE.new_empty(tokens)
    sums_BS = logits_TE.new_empty(blocks, images, dtype=torch.float64)
    sizes_BS = logits_TE.new_empty(blocks, images, dtype=torch.int32)
    experts_TA = logits_TE.new_empty(tokens, tail_experts, dtype=torch.int32)
    weights_TA = logits_TE.new_empty(tokens, tail_experts)
    block_e = triton.next_power_of_2(experts)
    _probabilities[(blocks,)](
        logits_TE,
        segment_T,
        probs_TE,
        rpv_T,
        sums_BS,
        sizes_BS,
        tokens,
        experts,
        images,
        BLOCK_T=BLOCK_T,
        BLOCK_E=block_e,
        BLOCK_S=BLOCK_S,
    )
    _decide[(blocks,)](
        probs_TE,
        rpv_T,
        segment_T,
        sums_BS,
        sizes_BS,
        experts_TA,
        weights_TA,
        load_MC,
        tokens,
        experts,
        images,
        blocks,
        top_k,
        tail_experts,
        DROP_UNUSED=drop_unused,
        RENORMALIZE=renormalize,
        A=tail_experts,
        BLOCK_T=BLOCK_T,
        BLOCK_E=block_e,
        **COUNTERS,
    )
    return experts_TA, weights_TA
