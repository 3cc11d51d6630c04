"""The routers of most policies as one Triton launch each: those that have a `prismoe.kernels.fused_rule`.

Every program decides for a block of tokens without the results of another launch, so each computes the RPV of
its images' other tokens again. Sums have a fixed order: equal inputs give equal bits on every rank. No number
of tokens compiles anything anew, so CUDA graphs can capture a launch.

Tested by Triton's interpreter and compiled ahead for five GPUs (`compile_ahead`); not yet run on a GPU.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from prismoe.kernels.fused_rule import ByEntropy, ByImportance, ByModality, ByTail, FusedRule

SCAN = tl.constexpr(1024)
"""The number of tokens whose segments are read at a time, to find an image's first and last token."""
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
FACTORS = ByImportance._fields[1:]


@triton.jit
def _load_scores(scores_ptr, token_T, T, E, BLOCK_E: tl.constexpr):
    """Loads scores, `[T, E]`; -inf beyond the step's tokens and experts, and for NaN, as in padding."""
    expert_E = tl.arange(0, BLOCK_E)
    inside_TE = (token_T < T)[:, None] & (expert_E < E)[None, :]
    scores_TE = tl.load(scores_ptr + token_T[:, None] * E + expert_E[None, :], inside_TE, float("-inf"))
    return tl.where(scores_TE == scores_TE, scores_TE, float("-inf"))


@triton.jit
def _exponentials(logits_TE):
    """The numerators of a softmax: exp(logits - max), `[T, E]`."""
    return tl.exp(logits_TE - tl.max(logits_TE, 1)[:, None])


@triton.jit
def _rpv(exp_TE, E, BLOCK_E: tl.constexpr):
    """Routing-probability variance, `[T]` (LTDR, Eq. 9)."""
    off_mean_TE = exp_TE / tl.sum(exp_TE, 1)[:, None] - 1.0 / E
    off_mean_TE = tl.where((tl.arange(0, BLOCK_E) < E)[None, :], off_mean_TE, 0.0)
    return tl.sum(off_mean_TE * off_mean_TE, 1) / E


@triton.jit
def _rpv_and_mean(logits_ptr, segment_ptr, token_T, segment_T, T, E, BLOCK_T: tl.constexpr,
                  BLOCK_E: tl.constexpr, BLOCK_I: tl.constexpr):  # fmt: skip
    """Each vision token's RPV and the mean RPV of its image, both `[T]` in float64 (LTDR, Eqs. 9 and 11).

    Tokens with the same number in `segment_T` belong to one image, even with other tokens between them. RPV
    and mean are made of the same rounded values: otherwise tokens that are all alike could be above their
    mean.
    """
    lowest = tl.min(tl.where(segment_T >= 0, segment_T, T), 0)
    highest = tl.max(segment_T, 0)
    begin, end = T, 0
    for start in range(0, T, SCAN):
        other_I = start + tl.arange(0, SCAN)
        image_I = tl.load(segment_ptr + other_I, other_I < T, -2).to(tl.int32)
        is_near_I = (image_I >= lowest) & (image_I <= highest)
        begin = tl.minimum(begin, tl.min(tl.where(is_near_I, other_I, T), 0))
        end = tl.maximum(end, tl.max(tl.where(is_near_I, other_I + 1, 0), 0))
    sum_T = tl.zeros([BLOCK_T], tl.float64)
    size_T = tl.zeros([BLOCK_T], tl.int32)
    own_T = tl.zeros([BLOCK_T], tl.float32)
    for start in range(begin, end, BLOCK_I):
        other_I = start + tl.arange(0, BLOCK_I)
        image_I = tl.load(segment_ptr + other_I, other_I < T, -2).to(tl.int32)
        rpv_I = _rpv(_exponentials(_load_scores(logits_ptr, other_I, T, E, BLOCK_E)), E, BLOCK_E)
        is_same_TI = segment_T[:, None] == image_I[None, :]
        sum_T += tl.sum(tl.where(is_same_TI, rpv_I[None, :].to(tl.float64), 0.0), 1)
        size_T += tl.sum(is_same_TI.to(tl.int32), 1)
        own_T += tl.sum(tl.where(token_T[:, None] == other_I[None, :], rpv_I[None, :], 0.0), 1)
    return own_T.to(tl.float64), sum_T / tl.maximum(size_T, 1).to(tl.float64)


@triton.jit
def _entropy(exp_TE, E):
    """The entropy of each token's probabilities, divided by its largest possible value, `[T]`."""
    probs_TE = exp_TE / tl.sum(exp_TE, 1)[:, None]
    entropy_T = -tl.sum(probs_TE * tl.log(tl.maximum(probs_TE, TINY)), 1)
    return entropy_T / tl.log(tl.maximum(E, 2).to(tl.float32))


@triton.jit
def _best_experts(scores_TE, values_TE, SLOTS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
                  BLOCK_A: tl.constexpr):  # fmt: skip
    """The `SLOTS` experts with the best scores and their values, both `[T, A]`; ties take the lower index."""
    expert_E, slot_A = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_A)
    experts_TA = tl.zeros([BLOCK_T, BLOCK_A], tl.int32)
    values_TA = tl.zeros([BLOCK_T, BLOCK_A], tl.float32)
    for slot in range(SLOTS):
        expert_T = tl.argmax(scores_TE, 1, tie_break_left=True).to(tl.int32)
        is_it_TE = expert_E[None, :] == expert_T[:, None]
        scores_TE = tl.where(is_it_TE, float("-inf"), scores_TE)
        value_T = tl.sum(tl.where(is_it_TE, values_TE, 0.0), 1)
        is_slot_A = (slot_A == slot)[None, :]
        experts_TA = tl.where(is_slot_A, expert_T[:, None], experts_TA)
        values_TA = tl.where(is_slot_A, value_T[:, None], values_TA)
    return experts_TA, values_TA


@triton.jit
def _threshold(threshold, LOADS: tl.constexpr):
    """A threshold: the number itself, or with `LOADS` the value in memory."""
    if LOADS:
        threshold = tl.load(threshold)
    return threshold


@triton.jit(do_not_specialize=["T"])
def _route(logits_ptr, scores_ptr, segment_ptr, asked_ptr, experts_ptr, weights_ptr, count_ptr, tail_ptr,
           T, E, threshold, low, high, text_importance, vision_importance, text_threshold, vision_threshold,
           KIND: tl.constexpr, TEXT: tl.constexpr, VISION: tl.constexpr, SELECTED: tl.constexpr,
           LEAST: tl.constexpr, USES_MEAN: tl.constexpr, SELECTS_HEAD: tl.constexpr, SLOTS: tl.constexpr,
           SHARED: tl.constexpr, RENORMALIZE: tl.constexpr, LOADS: tl.constexpr,
           BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_A: tl.constexpr,
           BLOCK_I: tl.constexpr):  # fmt: skip
    """Writes experts, weights and counts of a block of tokens, and tail flags if the rule has them."""
    token_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_inside_T = token_T < T
    segment_T = tl.load(segment_ptr + token_T, is_inside_T, -2).to(tl.int32)
    is_vision_T = segment_T >= 0
    logits_TE = _load_scores(logits_ptr, token_T, T, E, BLOCK_E)
    exp_TE = _exponentials(logits_TE)

    count_T = tl.full([BLOCK_T], SLOTS, tl.int32)
    if KIND == "modality":
        count_T = tl.where(is_vision_T, VISION, TEXT)
    if KIND == "tail":
        if USES_MEAN:
            rpv_T, least_T = _rpv_and_mean(
                logits_ptr, segment_ptr, token_T, segment_T, T, E, BLOCK_T, BLOCK_E, BLOCK_I
            )
        else:
            rpv_T = _rpv(exp_TE, E, BLOCK_E)
            least_T = tl.full([BLOCK_T], 0.0, tl.float32) + _threshold(threshold, LOADS)
        is_tail_T = is_vision_T & (rpv_T > least_T)
        tl.store(tail_ptr + token_T, is_tail_T.to(tl.int8), is_inside_T)
        is_selected_T = is_vision_T & (is_tail_T != SELECTS_HEAD)
        count_T = tl.where(is_selected_T, SELECTED, tl.where(is_vision_T, VISION, TEXT))
        if asked_ptr is not None:
            asked_T = tl.load(asked_ptr + 2 * token_T + tl.where(is_selected_T, 0, 1), is_inside_T, 0)
            count_T = tl.where(asked_T > 0, tl.minimum(asked_T, SLOTS), count_T)
    if KIND == "entropy":
        lowest = _threshold(low, LOADS)
        part_T = (_entropy(exp_TE, E) - lowest) / (_threshold(high, LOADS) - lowest)
        more_T = tl.floor(part_T * (SLOTS - LEAST + 1)).to(tl.int32)
        count_T = tl.minimum(tl.maximum(LEAST + more_T, LEAST), SLOTS)

    scores_TE, total_T = logits_TE, tl.sum(exp_TE, 1)
    if scores_ptr is not None:
        scores_TE = _load_scores(scores_ptr, token_T, T, E, BLOCK_E)
        if RENORMALIZE:  # a score may pick an expert whose probability rounds to 0
            exp_TE = tl.maximum(exp_TE, TINY)
    experts_TA, weights_TA = _best_experts(scores_TE, exp_TE, SLOTS, BLOCK_T, BLOCK_E, BLOCK_A)
    slot_A = tl.arange(0, BLOCK_A)
    is_used_TA = slot_A[None, :] < count_T[:, None]
    weights_TA = tl.where(is_used_TA, weights_TA, 0.0)
    if RENORMALIZE:
        total_T = tl.sum(weights_TA, 1)
    weights_TA /= total_T[:, None]
    if KIND == "importance":
        importance_T = tl.where(is_vision_T, vision_importance, text_importance)
        least_T = tl.where(
            is_vision_T, _threshold(vision_threshold, LOADS), _threshold(text_threshold, LOADS)
        )
        is_kept_TA = (importance_T[:, None] * weights_TA >= least_T[:, None]) & is_used_TA
        count_T = tl.maximum(tl.sum(is_kept_TA.to(tl.int32), 1), LEAST)
        is_used_TA = slot_A[None, :] < count_T[:, None]
        weights_TA = tl.where(is_used_TA, weights_TA, 0.0)
    first_T = tl.sum(tl.where((slot_A == 0)[None, :], experts_TA, 0), 1)
    if SHARED > 0:
        first_T = tl.zeros([BLOCK_T], tl.int32) + E
    experts_TA = tl.where(is_used_TA, experts_TA, first_T[:, None])

    row_T = token_T * (SHARED + SLOTS)
    for shared in range(SHARED):
        tl.store(experts_ptr + row_T + shared, tl.zeros([BLOCK_T], tl.int32) + E + shared, is_inside_T)
        tl.store(weights_ptr + row_T + shared, tl.full([BLOCK_T], 1.0, tl.float32), is_inside_T)
    inside_TA = is_inside_T[:, None] & (slot_A < SLOTS)[None, :]
    at_TA = row_T[:, None] + SHARED + slot_A[None, :]
    tl.store(experts_ptr + at_TA, experts_TA, inside_TA)
    tl.store(weights_ptr + at_TA, weights_TA, inside_TA)
    tl.store(count_ptr + token_T, count_T + SHARED, is_inside_T)


class FusedRouting(NamedTuple):
    """The decision for T tokens, as in `prismoe.kernels.routing`; A counts the shared experts, too."""

    experts_TA: Tensor  # int32
    weights_TA: Tensor  # float32
    count_T: Tensor  # int32
    tail_T: Tensor | None  # bool; None where the rule has no tail tokens


def fused_router(rule: FusedRule, segment_T: Tensor) -> FusedRouting:
    """Route a step's T tokens by `rule`."""
    logits_TE = rule.confidence.logits_TE.contiguous()
    scores_TE = None if rule.scores_TE is None else rule.scores_TE.contiguous()
    tokens, experts = logits_TE.shape
    slots = rule.shared + rule.slots
    experts_TA = logits_TE.new_empty(tokens, slots, dtype=torch.int32)
    weights_TA = logits_TE.new_empty(tokens, slots)
    count_T = logits_TE.new_empty(tokens, dtype=torch.int32)
    asked_T2, tail_T = None, None
    if isinstance(rule.uses, ByTail):
        asked_T2, tail_T = rule.uses.asked_T2, logits_TE.new_empty(tokens, dtype=torch.int8)
        segment_T = segment_T if rule.uses.compared_T is None else rule.uses.compared_T
    tile = tiles(experts, rule.slots)
    _route[(triton.cdiv(tokens, tile["BLOCK_T"]),)](
        logits_TE,
        scores_TE,
        segment_T,
        asked_T2,
        experts_TA,
        weights_TA,
        count_T,
        tail_T,
        tokens,
        experts,
        **settings(rule),
        **tile,
    )
    return FusedRouting(experts_TA, weights_TA, count_T, None if tail_T is None else tail_T.view(torch.bool))


def settings(rule: FusedRule) -> dict[str, Any]:
    """The kernel's arguments for a rule; those that only other kinds of rules use are 0."""
    match rule.uses:
        case ByModality(text, vision):
            own: dict[str, Any] = {"KIND": "modality", "TEXT": text, "VISION": vision}
        case ByTail(text, vision, selected, threshold, selects_head):
            own = {"KIND": "tail", "TEXT": text, "VISION": vision, "SELECTED": selected}
            own |= {
                "USES_MEAN": threshold is None,
                "threshold": 0.0 if threshold is None else threshold,
                "SELECTS_HEAD": selects_head,
            }
        case ByEntropy(least, low, high):
            own = {"KIND": "entropy", "LEAST": least, "low": low, "high": high}
        case ByImportance(least):
            own = {"KIND": "importance", "LEAST": least, **dict(zip(FACTORS, rule.uses[1:], strict=True))}
    return {
        **dict.fromkeys(("threshold", "low", "high", *FACTORS), 0.0),
        **dict.fromkeys(("TEXT", "VISION", "SELECTED", "LEAST"), 0),
        **dict.fromkeys(("USES_MEAN", "SELECTS_HEAD"), False),
        **own,
        "LOADS": any(isinstance(value, Tensor) for value in own.values()),
        "SLOTS": rule.slots,
        "SHARED": rule.shared,
        "RENORMALIZE": rule.renormalize,
    }


def tiles(experts: int, slots: int) -> dict[str, Any]:
    """The sizes of the kernel's tiles, for `experts` with a score and `slots` per token."""
    block_e = triton.next_power_of_2(experts)
    return {
        "BLOCK_T": max(16, min(32, 1024 // block_e)),
        "BLOCK_E": block_e,
        "BLOCK_A": triton.next_power_of_2(slots),
        "BLOCK_I": max(16, min(128, 2048 // block_e)),
    }
