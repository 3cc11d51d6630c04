"""Counting expert load by modality, and how sure the router was, on the device and without a sync.

A layer's counts are one int64 tensor `load_MC`, a row for each modality. Its columns: for each expert the
tokens that used it, then SUMS, then for each number of experts from 1 to E the tokens that used as many.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from prismoe.kernels.routing import TEXT, router_probabilities, routing_entropy, routing_probability_variance

MODALITIES = ("text", "vision")
SUMS = ("tokens", "tail_tokens", "scored_tokens", "near_ties", "entropy", "variance")
"""Scored tokens are those whose router gives probabilities: what the three sums behind are about."""

NEAR_TIE = 0.01
"""A token is a near tie when its last used expert scores less than this above the best unused one."""
UNIT = 2**20
"""Entropy (nats) and RPV · E are summed in parts of this: integer sums are the same in any order."""


class Confidence(NamedTuple):
    """What a router made of each token, over the experts that are not shared.

    The softmax of `logits_TE` are its probabilities. `scores_TE` ranked the experts, those at -inf were out
    of the question; None where the probabilities did.
    """

    logits_TE: Tensor
    scores_TE: Tensor | None = None

    @property
    def probs_TE(self) -> Tensor:
        """The router's probabilities, which sum to 1."""
        return router_probabilities(self.logits_TE)


def empty_load(num_experts: int) -> Tensor:
    """The counts of a layer of E experts that has seen nothing, `[modalities, 2 E + len(SUMS)]`."""
    return torch.zeros(len(MODALITIES), 2 * num_experts + len(SUMS), dtype=torch.int64)


def experts_of(load_MC: Tensor) -> int:
    """The layer's number of experts, E."""
    return (load_MC.shape[1] - len(SUMS)) // 2


class LayerLoad(NamedTuple):
    """A layer's counts as plain numbers, by modality; the server's `ExpertLoad` tells what each is."""

    expert_tokens: list[list[int]]
    tokens: list[int]
    tail_tokens: int
    tokens_by_experts: list[list[int]]
    scored_tokens: list[int]
    near_ties: list[int]
    routing_entropy: list[float]
    routing_variance: list[float]

    @classmethod
    def read(cls, load_MC: Tensor, slots: int) -> Self:
        """The counts of a layer whose tokens use at most `slots` experts."""
        num_experts = experts_of(load_MC)
        rows = load_MC.tolist()
        sums = {name: [row[num_experts + column] for row in rows] for column, name in enumerate(SUMS)}
        first = num_experts + len(SUMS)
        return cls(
            expert_tokens=[row[:num_experts] for row in rows],
            tokens=sums["tokens"],
            tail_tokens=sums["tail_tokens"][MODALITIES.index("vision")],
            tokens_by_experts=[row[first : first + slots] for row in rows],
            scored_tokens=sums["scored_tokens"],
            near_ties=sums["near_ties"],
            routing_entropy=[value / UNIT for value in sums["entropy"]],
            routing_variance=[value / UNIT / num_experts for value in sums["variance"]],
        )


def count_expert_load(
    load_MC: Tensor,
    experts_TA: Tensor,
    count_T: Tensor | None,
    tail_T: Tensor | None,
    segment_T: Tensor,
    confidence: Confidence | None,
) -> None:
    """Add one layer's step to `load_MC` in place. Padding counts nothing.

    Without `count_T` each token uses all slots, without `tail_T` none is a tail token.
    """
    num_experts, slots = experts_of(load_MC), experts_TA.shape[1]
    if count_T is None:
        count_T = torch.full_like(segment_T, slots)
    if tail_T is None:
        tail_T = torch.zeros_like(segment_T)
    is_text_T, is_vision_T = segment_T == TEXT, segment_T >= 0
    is_real_T = is_text_T | is_vision_T
    used_AT = torch.arange(slots, device=experts_TA.device)[:, None] < count_T
    by_count_T = num_experts + len(SUMS) - 1 + count_T
    cells_XT = torch.cat([experts_TA.T, by_count_T[None]]) + is_vision_T * load_MC.shape[1]
    amounts_XT = torch.cat([used_AT & is_real_T, is_real_T[None]])
    load_MC.view(-1).index_add_(0, cells_XT.flatten(), amounts_XT.flatten().to(load_MC.dtype))

    sums = [is_real_T, tail_T]
    if confidence is not None:
        sums += [is_real_T, *_confidence_sums(confidence, experts_TA, count_T, num_experts)]
    sums_XT = torch.stack([each.to(load_MC.dtype) for each in sums])
    is_of_modality_MT = torch.stack([is_text_T, is_vision_T])
    load_MC[:, num_experts : num_experts + len(sums)] += (is_of_modality_MT[:, None] * sums_XT).sum(dim=2)


def _confidence_sums(
    confidence: Confidence, experts_TA: Tensor, count_T: Tensor, num_experts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token: whether it is a near tie, its entropy, and its RPV · E, both in parts of UNIT."""
    probs_TE = confidence.probs_TE
    entropy_T = routing_entropy(probs_TE) * UNIT
    variance_T = routing_probability_variance(probs_TE) * (num_experts * UNIT)
    scores_TE = probs_TE if confidence.scores_TE is None else confidence.scores_TE
    if shared := num_experts - scores_TE.shape[1]:  # the last ones: used, and without a score
        scores_TE = pad(scores_TE, (0, shared), value=torch.inf)
    last_used_T1 = scores_TE.gather(1, experts_TA).amin(dim=1, keepdim=True)
    is_near_tie_T = (scores_TE > last_used_T1 - NEAR_TIE).sum(dim=1) > count_T
    return is_near_tie_T, entropy_T.round(), variance_T.round()
