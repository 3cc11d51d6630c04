"""Counting expert load by modality, and how sure the router was, on the device and without a sync.

A layer's counts are one int64 tensor `load_MC`, a row for each modality. Its columns: for each expert the
tokens that used it, then SUMS, then for each number of experts from 1 to E the tokens that used as many.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from prismoe.kernels.modalities import MODALITIES
from prismoe.kernels.routing import (
    PADDING,
    TEXT,
    router_probabilities,
    routing_entropy,
    routing_probability_variance,
)

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
    segment_T: Tensor | None,
    confidence: Confidence | None,
) -> None:
    """Add one layer's step to `load_MC` in place. Padding counts nothing.

    Without `count_T` each token uses all slots, without `tail_T` none is a tail token, without `segment_T`
    all are text.
    """
    num_experts, slots = experts_of(load_MC), experts_TA.shape[1]
    first_number = num_experts + len(SUMS)
    table_RC = load_MC.new_zeros(1 + len(MODALITIES), load_MC.shape[1])
    row, is_row_MT = _rows(segment_T, experts_TA)
    known_MC = table_RC[1 : 1 + len(is_row_MT)]
    tokens_M = is_row_MT.sum(dim=1)
    experts_AT = experts_TA.T.contiguous().long()  # torch is slow on CPU where rows are as short as a token's
    count: Tensor | int
    if count_T is None:
        count = slots
        _count_cells(table_RC, row, experts_AT)
        known_MC[:, first_number + slots - 1] = tokens_M
    else:
        count = count_T
        is_used_AT = torch.arange(slots, device=count.device)[:, None] < count
        _count_cells(table_RC, row * is_used_AT, experts_AT)
        _count_cells(table_RC, row, count + (first_number - 1))

    sums_M = {"tokens": tokens_M}
    values_T = {} if tail_T is None else {"tail_tokens": tail_T}
    if confidence is not None:
        sums_M["scored_tokens"] = tokens_M
        values_T |= _confidence_values(confidence, experts_AT, count, num_experts)
    if values_T:
        values_XT = torch.stack([*values_T.values()]).double()
        values_XT.nan_to_num_().round_()  # padding can hold anything, and 0 · NaN is not 0
        sums_XM = values_XT @ is_row_MT.T  # of whole numbers, which add up exactly
        sums_M |= zip(values_T, sums_XM, strict=True)
    for name, sum_M in sums_M.items():
        known_MC[:, num_experts + SUMS.index(name)] = sum_M
    load_MC += table_RC[1:]


def _rows(segment_T: Tensor | None, experts_TA: Tensor) -> tuple[Tensor | int, Tensor]:
    """Each token's row in a table: 0 if it counts nothing, then the modalities; and, of those, which it is.

    Where all tokens are text it is one number, and `is_row_MT` has no row for vision.
    """
    if segment_T is None:
        return TEXT - PADDING, torch.ones(1, len(experts_TA), dtype=torch.float64, device=experts_TA.device)
    row_T = segment_T.clamp(max=0) - PADDING
    modality_row_M = torch.arange(1, 1 + len(MODALITIES), device=row_T.device)
    return row_T, (modality_row_M[:, None] == row_T).double()


def _count_cells(table_RC: Tensor, rows: Tensor | int, columns: Tensor) -> None:
    cells = (rows * table_RC.shape[1] + columns).flatten()
    table_RC.view(-1).index_add_(0, cells, table_RC.new_ones(()).expand(len(cells)))


def _confidence_values(
    confidence: Confidence, experts_AT: Tensor, count: Tensor | int, num_experts: int
) -> dict[str, Tensor]:
    """Of each token: whether it is a near tie, its entropy, and its RPV · E, both in parts of UNIT."""
    probs_ET = router_probabilities(confidence.logits_TE.T.contiguous(), dim=0)
    scores_ET = probs_ET if confidence.scores_TE is None else confidence.scores_TE.T.contiguous()
    if shared := num_experts - len(scores_ET):  # the last ones: used, and without a score
        scores_ET = pad(scores_ET, (0, 0, 0, shared), value=torch.inf)
    last_used_T = scores_ET.gather(0, experts_AT).amin(dim=0)
    near_T = (last_used_T - scores_ET).lt_(NEAR_TIE).sum(dim=0)  # in place: bools are slower
    return {
        "near_ties": near_T > count,
        "entropy": routing_entropy(probs_ET.T, torch.float64) * UNIT,  # the same wherever the token is
        "variance": routing_probability_variance(probs_ET.T, torch.float64) * (num_experts * UNIT),
    }
