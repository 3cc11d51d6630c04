"""Counts expert load and router confidence by modality, on the device and without a sync.

The counts of a model are one int64 tensor `load_LMC`, with a row for each MoE layer and each of the model's
modalities. Its columns are: for each expert the tokens that used it; the SUMS; and for each number of experts
from 0 to E the tokens that used that many. E is the largest number of experts of a layer.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from prismoe.kernels.modalities import VISION
from prismoe.kernels.routing import router_probabilities, routing_entropy

SUMS = ("tokens", "tail_tokens", "scored_tokens", "near_ties", "entropy", "variance")
"""The last three are sums over the scored tokens, whose router gives probabilities."""

NOT_COUNTED = -1
"""The modality of padding."""
NEAR_TIE = 0.01
"""A token is a near tie when its last used expert scores less than this above its best unused one."""
UNIT = 2**20
"""Entropy (nats) and RPV · E are summed in units of 1 / UNIT: integer sums are the same in any order."""


class Confidence(NamedTuple):
    """A router's probabilities and scores for each token, over the experts that are not shared.

    The softmax of `logits_TE` gives the probabilities. `scores_TE` ranked the experts, with -inf for those
    that could not be chosen; None where the probabilities ranked them.
    """

    logits_TE: Tensor
    scores_TE: Tensor | None = None

    @property
    def probs_TE(self) -> Tensor:
        """The router's probabilities, which sum to 1."""
        return router_probabilities(self.logits_TE)


class LayerShape(NamedTuple):
    """The facts about a MoE layer that counting needs."""

    experts: int
    slots: int
    """The most experts that a token uses."""
    scored: int
    """How many experts, from the first on, the router gives probabilities; 0 where it gives none."""
    has_scores: bool = False
    """Whether scores rank the experts, not the probabilities."""
    uses_all_slots: bool = False
    """Whether every token uses all slots."""
    has_tails: bool = False
    """Whether some tokens may be tail tokens."""
    has_near_ties: bool = True
    """Whether the ranking alone chooses the experts. Only then are near ties counted."""


class RoutedTokens(NamedTuple):
    """The experts of T tokens in L layers. Token t uses slot a in layer l when `a < count_LT[l, t]`."""

    modality_T: Tensor  # int64: the row of `load_LMC`, or NOT_COUNTED
    experts_LTA: Tensor  # int32
    count_LT: Tensor  # int32
    tail_LT: Tensor  # bool


class ScoredTokens(NamedTuple):
    """Tokens whose router confidence is counted. Columns that a layer doesn't have may hold anything."""

    modality_T: Tensor
    experts_LTA: Tensor
    count_LT: Tensor
    logits_LTE: Tensor  # float32
    scores_LTE: Tensor  # float32, read in layers that have scores


def empty_load(layers: int, modalities: int, experts: int) -> Tensor:
    """The zero counts of L layers of at most E experts, `[L, M, 2 E + 1 + len(SUMS)]`."""
    return torch.zeros(layers, modalities, 2 * experts + 1 + len(SUMS), dtype=torch.int64)


def experts_of(load_LMC: Tensor) -> int:
    """The largest number of experts of a layer, E."""
    return (load_LMC.shape[-1] - 1 - len(SUMS)) // 2


class LayerLoad(NamedTuple):
    """A layer's counts as plain numbers, by modality; the server's `ExpertLoad` documents each field."""

    expert_tokens: list[list[int]]
    tokens: list[int]
    tail_tokens: int
    tokens_by_experts: list[list[int]]
    scored_tokens: list[int]
    near_ties: list[int | None]
    routing_entropy: list[float]
    routing_variance: list[float]

    @classmethod
    def read(cls, load_MC: Tensor, shape: LayerShape, modalities: Sequence[str]) -> Self:
        """Read one layer's counts."""
        most = experts_of(load_MC)
        rows = load_MC.tolist()
        sums = {name: [row[most + column] for row in rows] for column, name in enumerate(SUMS)}
        first = most + len(SUMS)
        tail = zip(modalities, sums["tail_tokens"], strict=True)
        return cls(
            expert_tokens=[row[: shape.experts] for row in rows],
            tokens=sums["tokens"],
            tail_tokens=sum(tokens for modality, tokens in tail if modality in VISION),
            tokens_by_experts=[row[first : first + shape.slots + 1] for row in rows],
            scored_tokens=sums["scored_tokens"],
            near_ties=sums["near_ties"] if shape.has_near_ties else [None] * len(rows),
            routing_entropy=[value / UNIT for value in sums["entropy"]],
            routing_variance=[value / UNIT / most for value in sums["variance"]],
        )


def count_routed(load_LMC: Tensor, routed: RoutedTokens) -> None:
    """Add the tokens, their experts and the tail tokens to `load_LMC` in place."""
    layers, modalities, columns = load_LMC.shape
    slots, most = routed.experts_LTA.shape[2], experts_of(load_LMC)
    table_LRC = load_LMC.new_zeros(layers, 1 + modalities, columns)  # row 0 collects what is not counted
    layer_L1 = torch.arange(layers, device=load_LMC.device)[:, None] * (1 + modalities)
    row_LT = layer_L1 + routed.modality_T + 1
    slot_A = torch.arange(slots, device=load_LMC.device)
    row_LTA = torch.where(slot_A < routed.count_LT[..., None], row_LT[..., None], layer_L1[..., None])
    _add(table_LRC, row_LTA, routed.experts_LTA.clamp(min=0))  # vLLM gives padding expert -1 on some devices
    _add(table_LRC, row_LT, routed.count_LT + (most + len(SUMS)))
    tail_row_LT = torch.where(routed.tail_LT, row_LT, layer_L1)
    _add(table_LRC, tail_row_LT, torch.full_like(routed.count_LT, most + SUMS.index("tail_tokens")))
    counted_LMC = table_LRC[:, 1:]
    counted_LMC[..., most + SUMS.index("tokens")] = counted_LMC[..., most + len(SUMS) :].sum(dim=-1)
    load_LMC += counted_LMC


def _add(table_LRC: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Add 1 to each cell of `table_LRC`. `rows` number the rows of all layers in one sequence."""
    cells = (rows * table_LRC.shape[-1] + columns).flatten()
    table_LRC.view(-1).index_add_(0, cells, table_LRC.new_ones(()).expand(len(cells)))


def count_confidence(load_LMC: Tensor, scored: ScoredTokens, shapes: Sequence[LayerShape]) -> None:
    """Add near ties, entropy and RPV of the scored tokens to `load_LMC` in place."""
    most = experts_of(load_LMC)
    ties_LT, entropy_LT, variance_LT = _confidence(scored, shapes, most)
    is_scored_L = torch.tensor([shape.scored > 0 for shape in shapes], device=load_LMC.device)
    modality_M = torch.arange(load_LMC.shape[1], device=load_LMC.device)
    is_of_MT = (scored.modality_T == modality_M[:, None]).double()
    parts_LT = torch.ones_like(ties_LT), ties_LT, entropy_LT * UNIT, variance_LT * most * UNIT
    values_XLT = torch.stack(parts_LT)
    # Logits of padding can be anything, and 0 · NaN is not 0. Whole numbers add up exactly.
    values_XLT = values_XLT.nan_to_num_().round_() * is_scored_L[:, None]
    sums_LMX = torch.einsum("xlt,mt->lmx", values_XLT, is_of_MT).long()
    load_LMC[..., most + SUMS.index("scored_tokens") : most + len(SUMS)] += sums_LMX


def _confidence(
    scored: ScoredTokens, shapes: Sequence[LayerShape], most: int
) -> tuple[Tensor, Tensor, Tensor]:
    """For each layer and token: whether it is a near tie, its entropy and its RPV, in float64."""
    device = scored.logits_LTE.device
    expert_E = torch.arange(most, device=device)

    def of_layers(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=device)[:, None, None]

    scored_L11 = of_layers([shape.scored for shape in shapes])
    is_scored_L1E = expert_E < scored_L11
    is_there_L1E = expert_E < of_layers([shape.experts for shape in shapes])
    probs_LTE = router_probabilities(scored.logits_LTE.masked_fill(~is_scored_L1E, -torch.inf))
    has_scores_L11 = of_layers([shape.has_scores for shape in shapes])
    ranking_LTE = torch.where(has_scores_L11, scored.scores_LTE, probs_LTE)
    ranking_LTE = ranking_LTE.masked_fill(~is_scored_L1E, torch.inf)  # shared experts: used, without a score
    ranking_LTE = ranking_LTE.masked_fill(~is_there_L1E, -torch.inf)
    is_used_LTA = torch.arange(scored.experts_LTA.shape[2], device=device) < scored.count_LT[..., None]
    used_LTA = ranking_LTE.gather(2, scored.experts_LTA.clamp(min=0).long())
    last_used_LT1 = used_LTA.masked_fill(~is_used_LTA, torch.inf).amin(dim=2, keepdim=True)
    near_LT = (last_used_LT1 - ranking_LTE < NEAR_TIE).sum(dim=2)
    off_mean_LTE = (probs_LTE.double() - 1 / scored_L11.clamp(min=1)) * is_scored_L1E
    variance_LT = off_mean_LTE.square().sum(dim=2) / scored_L11[..., 0].clamp(min=1)
    return (near_LT > scored.count_LT).double(), routing_entropy(probs_LTE, torch.float64), variance_LT
