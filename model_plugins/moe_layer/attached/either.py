"""Chooses between two decisions for the same tokens, by a flag on the device."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from prismoe.kernels.expert_load import Confidence
from prismoe.model_plugins.routing.policy import Routing


def either(is_native: Tensor, native: Routing, policy: Routing) -> Routing:
    """`native` where the flag (0-d, bool) is set, else `policy`, with int32 experts.

    The result has as many slots as the wider decision. Where `native` has no confidence, the policy's is
    used. The host does not wait for the flag, so a captured graph follows it, too.
    """
    slots = max(native.experts_TA.shape[1], policy.experts_TA.shape[1])
    experts_TA, weights_TA = (
        torch.where(is_native, *parts)
        for parts in zip(_padded(native, slots), _padded(policy, slots), strict=True)
    )
    use_all = all(one.given_count_T is None and one.experts_TA.shape[1] == slots for one in (native, policy))
    return Routing(
        experts_TA.contiguous(),
        weights_TA.contiguous(),
        None if use_all else torch.where(is_native, native.count_T.int(), policy.count_T.int()),
        None if policy.given_tail_T is None else policy.given_tail_T & ~is_native,
        _confidence(is_native, native.confidence, policy.confidence),
    )


def _padded(routing: Routing, slots: int) -> tuple[Tensor, Tensor]:
    """The experts and weights, padded to `slots` with each token's first expert at weight 0."""
    experts_TA, weights_TA = routing.experts_TA.int(), routing.weights_TA.float()
    missing = slots - experts_TA.shape[1]
    if missing:
        experts_TA = torch.cat([experts_TA, experts_TA[:, :1].expand(-1, missing)], dim=1)
        weights_TA = pad(weights_TA, (0, missing))
    return experts_TA, weights_TA


def _confidence(is_native: Tensor, native: Confidence | None, policy: Confidence | None) -> Confidence | None:
    if native is None or policy is None:
        return policy
    logits_TE = torch.where(is_native, native.logits_TE, policy.logits_TE)
    if policy.scores_TE is None:
        return Confidence(logits_TE)
    ranking_TE = native.probs_TE if native.scores_TE is None else native.scores_TE
    return Confidence(logits_TE, torch.where(is_native, ranking_TE, policy.scores_TE))
