"""The arithmetic that routing policies share, in plain PyTorch: no host sync, no data-dependent shape.

Shape legend (the whole project): T tokens, D hidden, F expert width, E experts, A slots, S segments.
`segment_T` holds, for each token, the index of its image within the step, TEXT or PADDING.
"""

import torch
from torch import Tensor

TEXT = -1
PADDING = -2

MOST_COMPARED = 8
"""The most experts for which a compiled graph compares each pair of scores. Unlike a sort, that can be
fused."""


def router_probabilities(logits_TE: Tensor, dim: int = -1) -> Tensor:
    """Softmax over the experts, along `dim`, in float32 (LTDR, Eq. 6)."""
    return torch.softmax(logits_TE.float(), dim=dim)


def routing_probability_variance(probs_TE: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """RPV: the variance of each token's routing probabilities, `[T]`, summed in `dtype` (LTDR, Eq. 9)."""
    return (probs_TE - 1 / probs_TE.shape[1]).square_().mean(dim=-1, dtype=dtype)


def routing_entropy(probs_TE: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The entropy of each token's routing probabilities, `[T]` in nats, summed in `dtype`: 0 to log E."""
    log_TE = probs_TE.clamp(min=torch.finfo(probs_TE.dtype).tiny).log_()  # on CPU, special.entr is slow
    return -log_TE.mul_(probs_TE).sum(dim=-1, dtype=dtype)


def segment_mean(values_T: Tensor, segment_T: Tensor) -> Tensor:
    """The mean of `values_T` over each vision token's own image, `[T]` in float64.

    The values at other tokens mean nothing.

    Summing float32 values in float64 makes the mean of equal values exact. For other values the sum is
    rounded some 29 bits below float32, and a GPU may add in another order: a token that is that close to the
    mean can fall on either side.
    """
    slot_T = segment_T.clamp(min=-1) + 1  # slot 0 takes the tokens of no image; a step holds at most T images
    value_T = values_T.double()
    empty_S = value_T.new_zeros(len(value_T) + 1)
    sum_S = empty_S.index_add(0, slot_T, value_T)
    size_S = empty_S.index_add(0, slot_T, torch.ones_like(value_T))
    return (sum_S / size_S)[slot_T]


def tail_tokens(probs_TE: Tensor, segment_T: Tensor, threshold: float | Tensor | None = None) -> Tensor:
    """Vision tail tokens, boolean `[T]`: RPV above the mean RPV of the token's image (LTDR, Eq. 11).

    With a `threshold` (a number, or a 0-d tensor) RPV is compared with that instead.
    """
    rpv_T = routing_probability_variance(probs_TE).double()
    return (segment_T >= 0) & (rpv_T > (segment_mean(rpv_T, segment_T) if threshold is None else threshold))


def by_modality(is_vision_T: Tensor, rows_2X: Tensor) -> Tensor:
    """The first row for each text token and the second for each vision token, `[T, X]`."""
    return torch.where(is_vision_T[:, None], rows_2X[1], rows_2X[0])


def ranked_experts(scores_TE: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """The `slots` best experts of each token and their scores, best first; ties take the lower index."""
    if torch.compiler.is_compiling() and 1 < scores_TE.shape[1] <= MOST_COMPARED:
        return ranked_by_comparison(scores_TE, slots)
    scores_TA, experts_TA = torch.sort(scores_TE, dim=-1, descending=True, stable=True)
    return experts_TA[:, :slots], scores_TA[:, :slots]


def ranked_by_comparison(scores_TE: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """`ranked_experts` without a sort, so that the compiler can make one vectorised loop of it."""
    score_ET = scores_TE.unbind(dim=1)
    rank_ET = []
    for i, own_T in enumerate(score_ET):
        before = [other_T >= own_T for other_T in score_ET[:i]]
        before += [other_T > own_T for other_T in score_ET[i + 1 :]]
        rank_ET.append(torch.stack(before).sum(dim=0))
    experts_AT, scores_AT = [], []
    for slot in range(slots):
        expert_T, score_T = torch.zeros_like(score_ET[0], dtype=torch.int64), torch.zeros_like(score_ET[0])
        for i, rank_T in enumerate(rank_ET):
            expert_T = torch.where(rank_T.eq(slot), i, expert_T)
            score_T = torch.where(rank_T.eq(slot), score_ET[i], score_T)
        experts_AT.append(expert_T)
        scores_AT.append(score_T)
    return torch.stack(experts_AT, dim=1), torch.stack(scores_AT, dim=1)


def top_experts(
    logits_TE: Tensor, k: int, renormalize: bool, scores_TE: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k most probable experts of each token, most probable first (LTDR, Eqs. 6 and 7).

    Returns `experts_TA` (int64) and `weights_TA` (float32); equal logits take the lower expert index. The
    weights are the experts' probabilities, or with `renormalize` a softmax over the k alone, which equals the
    probabilities scaled to a sum of 1. With `scores_TE`, the k best scores choose the experts.
    """
    experts_TA, logits_TA = _ranked_with_logits(logits_TE, k, scores_TE)
    if renormalize:
        return experts_TA, router_probabilities(logits_TA)
    return experts_TA, router_probabilities(logits_TE).gather(1, experts_TA)


def _ranked_with_logits(logits_TE: Tensor, slots: int, scores_TE: Tensor | None) -> tuple[Tensor, Tensor]:
    """The `slots` best experts of each token, by scores if given, else by logits, and their logits."""
    if scores_TE is None:
        return ranked_experts(logits_TE, slots)
    experts_TA, _ = ranked_experts(scores_TE, slots)
    return experts_TA, logits_TE.gather(1, experts_TA)


def top_experts_by_count(
    logits_TE: Tensor, count_T: Tensor, slots: int, renormalize: bool, scores_TE: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`top_experts` with `count_T[t]` experts for token t (LTDR, Eqs. 7 and 12); see `use_first`."""
    experts_TA, logits_TA = _ranked_with_logits(logits_TE, slots, scores_TE)
    return weighed_by_count(logits_TE, experts_TA, logits_TA, count_T, renormalize)


def weighed_by_count(
    logits_TE: Tensor, experts_TA: Tensor, logits_TA: Tensor, count_T: Tensor, renormalize: bool
) -> tuple[Tensor, Tensor]:
    """Each token's first `count_T` experts, weighed as in `top_experts`; their logits are `logits_TA`."""
    if renormalize:
        is_used_TA = used_slots(count_T, experts_TA.shape[1])
        weights_TA = router_probabilities(torch.where(is_used_TA, logits_TA, -torch.inf))
    else:
        weights_TA = router_probabilities(logits_TE).gather(1, experts_TA)
    return use_first(experts_TA, weights_TA, count_T)


def used_slots(count_T: Tensor, slots: int) -> Tensor:
    """Whether a token uses each slot, boolean `[T, A]`: it uses the first `count_T`."""
    return torch.arange(slots, device=count_T.device) < count_T[:, None]


def use_first(experts_TA: Tensor, weights_TA: Tensor, count_T: Tensor) -> tuple[Tensor, Tensor]:
    """Use the first `count_T` slots of each token; the others repeat its first expert at weight 0."""
    used_TA = used_slots(count_T, experts_TA.shape[1])
    return torch.where(used_TA, experts_TA, experts_TA[:, :1]), torch.where(used_TA, weights_TA, 0)


def picked_experts(scores_TE: Tensor, probs_TE: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """The k experts with the best scores; their weights come from `probs_TE`, not from the scores."""
    experts_TA, _ = ranked_experts(scores_TE, k)
    weights_TA = probs_TE.gather(1, experts_TA)
    if renormalize:
        weights_TA = weights_TA.clamp(min=torch.finfo(weights_TA.dtype).tiny)
        weights_TA = weights_TA / weights_TA.sum(dim=-1, keepdim=True)
    return experts_TA, weights_TA


def with_shared_experts(
    experts_TA: Tensor, weights_TA: Tensor, count_T: Tensor, shared: int, num_experts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Put the layer's last `shared` experts in front of each token's routing, at weight 1."""
    first_shared, num_tokens = num_experts - shared, len(experts_TA)
    used_TA = used_slots(count_T, experts_TA.shape[1])
    routed_TA = torch.where(used_TA, experts_TA, first_shared)
    shared_TA = torch.arange(first_shared, num_experts, device=experts_TA.device).expand(num_tokens, -1)
    weights_TA = torch.cat([weights_TA.new_ones(num_tokens, shared), weights_TA], dim=1)
    return torch.cat([shared_TA, routed_TA], dim=1), weights_TA, count_T + shared
