"""How routers choose, in figures, of what a training model's MoE layers decided for a batch.

Shape legend: that of kernels/routing.py.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from prismoe.kernels.balance import variation
from prismoe.kernels.routing import PADDING, TEXT, routing_entropy, routing_probability_variance
from prismoe.training.comparison.measured import LayerFigures
from prismoe.training.losses import chosen_experts
from prismoe.training.model.moe_llava import LayerDecision, MoELLaVA

BUCKETS = 40
"""Of a histogram of RPV."""
WIDEST = 0.995
"""The share of all tokens whose RPV a histogram covers."""


def top_ks(model: MoELLaVA) -> list[int]:
    """How many experts a token chooses first, in each MoE layer."""
    top_k = model.config.top_k
    return [moe.policy.model_dump().get("top_k", top_k) for moe in model.moe_layers]


@torch.no_grad()
def entropy_bits(routings: Sequence[LayerDecision]) -> float:
    """The mean entropy of the router's probabilities, over the layers and the tokens. Servers report none for
    `gmm` and `top_any`, so the training model does.
    """
    entropies = [
        routing_entropy(routing.probs_TE)[routing.segment_T != PADDING].mean() for routing in routings
    ]
    return torch.stack(entropies).mean().item() / math.log(2)


def load_variation(routings: Sequence[LayerDecision]) -> float:
    """CV_mean of all uses of experts."""
    return _mean_variation([chosen_experts(routing)[routing.segment_T != PADDING] for routing in routings])


def first_choices_variation(routings: Sequence[LayerDecision], ks: Sequence[int]) -> float:
    """CV_mean of each layer's first k choices. Tokens that use all experts would hide how uneven those are.

    A server counts uses alone, so the training model reports this, too. Shared experts, which no token
    chooses, are left out.
    """
    return _mean_variation([_first_choices(*layer) for layer in zip(routings, ks, strict=True)])


def _mean_variation(chosen_TE: Sequence[torch.Tensor]) -> float:
    return statistics.mean(variation(each.sum(dim=0).long().numpy()) for each in chosen_TE)


def _first_choices(routing: LayerDecision, k: int) -> torch.Tensor:
    """Which experts each token has among its first k choices, `[T, E]` without shared ones."""
    chosen_among = routing.probs_TE.shape[1]
    slots = routing.step.num_experts - chosen_among + k  # shared experts come first
    first = replace(
        routing, experts_TA=routing.experts_TA[:, :slots], weights_TA=routing.weights_TA[:, :slots]
    )
    return chosen_experts(first)[routing.segment_T != PADDING, :chosen_among]


def layer_figures(routing: LayerDecision) -> LayerFigures:
    """Histograms of RPV and the load of one layer, by modality."""
    rpv_T = routing_probability_variance(routing.probs_TE).double()
    is_vision_T, is_text_T = routing.segment_T >= 0, routing.segment_T == TEXT
    widest = torch.quantile(rpv_T[is_vision_T | is_text_T], WIDEST).item()
    used_TE = chosen_experts(routing)

    def histogram(is_counted_T: torch.Tensor) -> list[float]:
        counts, _ = np.histogram(rpv_T[is_counted_T].numpy(), BUCKETS, (0, widest or 1))
        return (counts / max(int(is_counted_T.sum()), 1)).tolist()

    def load(is_counted_T: torch.Tensor) -> list[float]:
        used_E = used_TE[is_counted_T].sum(dim=0)
        return (used_E / used_E.sum().clamp(min=1)).tolist()

    return LayerFigures(
        rpv_widest=widest,
        rpv_vision=histogram(is_vision_T),
        rpv_text=histogram(is_text_T),
        above_mean=_above_image_mean(rpv_T, routing.segment_T),
        load_vision=load(is_vision_T),
        load_text=load(is_text_T),
    )


def _above_image_mean(rpv_T: torch.Tensor, segment_T: torch.Tensor) -> float:
    """The share of vision tokens whose RPV is above their image's mean (LTDR, Eq. 11), by any router."""
    is_vision_T = segment_T >= 0
    rpv_V, segment_V = rpv_T[is_vision_T], segment_T[is_vision_T].long()
    sums = torch.zeros(int(segment_V.max()) + 1, dtype=rpv_V.dtype).index_add(0, segment_V, rpv_V)
    mean_V = (sums / segment_V.bincount().clamp(min=1))[segment_V]
    return (rpv_V > mean_V).double().mean().item()
