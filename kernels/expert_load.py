"""Counting expert load by modality, and how sure the router was, on the device and without a sync.

A layer's counts are one int64 tensor `load_MC`, a row for each modality. Its columns: for each expert the
tokens that used it, then SUMS, then for each number of experts from 1 to E the tokens that used as many.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from prismoe.kernels.routing import (
    PADDING,
    router_probabilities,
    routing_entropy,
    routing_probability_variance,
)

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
    experts_AT = experts_TA.T.contiguous()  # torch is slow on CPU where rows are as short as a token's
    row_T = used_row_AT = segment_T.clamp(max=0) - PADDING  # the first row takes what counts nothing
    if count_T is not None:
        used_row_AT = row_T * (torch.arange(slots, device=row_T.device)[:, None] < count_T)
    count = slots if count_T is None else count_T
    table_RC = load_MC.new_zeros(1 + len(MODALITIES), load_MC.shape[1])
    _count_cells(table_RC, used_row_AT, experts_AT)
    _count_cells(table_RC, row_T, count + (num_experts + len(SUMS) - 1))

    one_T = torch.ones_like(row_T)
    sums = [one_T, torch.zeros_like(one_T) if tail_T is None else tail_T]
    if confidence is not None:
        sums += [one_T, *_confidence_sums(confidence, experts_AT, count, num_experts)]
    sums_XT = torch.stack([each.double() for each in sums])  # whole numbers, which add up exactly
    sums_XT.nan_to_num_()  # padding can hold anything, and 0 · NaN is not 0
    for row, row_C in enumerate(table_RC[1:], start=1):
        row_C[num_experts : num_experts + len(sums)] = sums_XT @ (row_T == row).double()
    load_MC += table_RC[1:]


def _count_cells(table_RC: Tensor, rows: Tensor, columns: Tensor | int) -> None:
    cells = (rows * table_RC.shape[1] + columns).flatten()
    table_RC.view(-1).index_add_(0, cells, table_RC.new_ones(()).expand(len(cells)))


def _confidence_sums(
    confidence: Confidence, experts_AT: Tensor, count: Tensor | int, num_experts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token: whether it is a near tie, its entropy, and its RPV · E, both in parts of UNIT."""
    probs_ET = router_probabilities(confidence.logits_TE.T.contiguous(), dim=0)
    entropy_T = routing_entropy(probs_ET.T, torch.float64) * UNIT  # the same wherever the token is
    variance_T = routing_probability_variance(probs_ET.T, torch.float64) * (num_experts * UNIT)
    scores_ET = probs_ET if confidence.scores_TE is None else confidence.scores_TE.T.contiguous()
    if shared := num_experts - len(scores_ET):  # the last ones: used, and without a score
        scores_ET = pad(scores_ET, (0, 0, 0, shared), value=torch.inf)
    last_used_T = scores_ET.gather(0, experts_AT).amin(dim=0)
    near_T = (last_used_T - scores_ET).lt_(NEAR_TIE).sum(dim=0)  # in place: bools are slower
    return near_T > count, entropy_T.round(), variance_T.round()
