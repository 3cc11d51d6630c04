"""The arithmetic that routing policies share, in plain PyTorch: no host sync, no data-dependent shape.

Shape legend (the whole project): T tokens, D hidden, F expert width, E experts, A slots, S segments.
`segment_T` holds, for each token, the index of its image within the step, TEXT or PADDING.
"""

import torch
from torch import Tensor

TEXT = -1
PADDING = -2


def router_probabilities(logits_TE: Tensor) -> Tensor:
    """Softmax over the experts in float32 (LTDR, Eq. 6)."""
    return torch.softmax(logits_TE.float(), dim=-1)


def routing_probability_variance(probs_TE: Tensor) -> Tensor:
    """RPV: the variance of each token's routing probabilities, `[T]` (LTDR, Eq. 9)."""
    return probs_TE.var(dim=-1, unbiased=False)


def segment_mean(values_T: Tensor, segment_T: Tensor) -> Tensor:
    """For each vision token the mean of `values_T` over its own image, `[T]` in float64; 0 elsewhere.

    Summing float32 values in float64 makes the mean of equal values exact. Of other values the sum rounds
    some 29 bits below float32, in an order that may differ on a GPU: a token as close to the mean as that
    can fall on either side.
    """
    is_vision_T = segment_T >= 0
    slot_T = segment_T.clamp(min=0).long()  # a step holds at most T images
    value_T = torch.where(is_vision_T, values_T, 0).double()
    sum_S = torch.zeros_like(value_T).index_add(0, slot_T, value_T)
    size_S = torch.zeros_like(value_T).index_add(0, slot_T, is_vision_T.double())
    mean_S = sum_S / size_S.clamp(min=1)
    return torch.where(is_vision_T, mean_S[slot_T], 0)


def tail_tokens(probs_TE: Tensor, segment_T: Tensor) -> Tensor:
    """Vision tail tokens, boolean `[T]`: RPV above the mean RPV of the token's image (LTDR, Eq. 11)."""
    rpv_T = routing_probability_variance(probs_TE)
    return (segment_T >= 0) & (rpv_T.double() > segment_mean(rpv_T, segment_T))


def top_experts(probs_TE: Tensor, count_T: Tensor, slots: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """The `count_T` most probable experts of each token (LTDR, Eqs. 7 and 12).

    Returns `experts_TA` (int64) and `weights_TA` (float32) with A = `slots`, most probable first; equal
    probabilities take the lower expert index. A slot beyond a token's count repeats its first expert at
    weight 0. With `renormalize` the used weights of a token sum to 1, else they are its probabilities.
    """
    weights_TA, experts_TA = torch.sort(probs_TE, dim=-1, descending=True, stable=True)
    weights_TA, experts_TA = weights_TA[:, :slots], experts_TA[:, :slots]
    used_TA = torch.arange(slots, device=probs_TE.device) < count_T[:, None]
    weights_TA = torch.where(used_TA, weights_TA, 0)
    if renormalize:
        weights_TA = weights_TA / weights_TA.sum(dim=-1, keepdim=True)
    return torch.where(used_TA, experts_TA, experts_TA[:, :1]), weights_TA
