"""What the literature measures about routing, from expert loads and routing probabilities.

Shape legend: T tokens, E experts, L layers. A load counts the uses of each expert.
"""

import torch
from torch import Tensor

from prismoe.kernels.routing import router_probabilities, routing_entropy, tail_tokens


def load_variation(load_LE: Tensor) -> Tensor:
    """CV_mean: the coefficient of variation of the experts' load, mean over the layers (IDA-MoE, Sec. 5.1).

    0 when each layer uses its experts alike. The deviation is the population's; a layer without load counts
    as even.
    """
    load_LE = load_LE.double()
    mean_L = load_LE.mean(dim=-1)
    deviation_L = load_LE.std(dim=-1, unbiased=False)
    return (deviation_L / mean_L.clamp(min=torch.finfo(mean_L.dtype).tiny)).mean()


def mean_routing_entropy(logits_TE: Tensor) -> Tensor:
    """The tokens' mean routing entropy in nats, from 0 to log E (IDA-MoE, Fig. 3)."""
    return routing_entropy(router_probabilities(logits_TE)).mean()


def tail_share(logits_TE: Tensor, segment_T: Tensor) -> Tensor:
    """The share of vision tokens that are tail tokens (LTDR, Eq. 11; the paper finds about 13%)."""
    tail_T = tail_tokens(router_probabilities(logits_TE), segment_T)
    return tail_T.sum() / (segment_T >= 0).sum().clamp(min=1)


def expert_distance(load_E: Tensor, other_load_E: Tensor) -> Tensor:
    """Jensen–Shannon distance of two distributions over the experts: 0 when alike, 1 when they share none."""
    p_E, q_E = (load.double() / load.sum().clamp(min=1) for load in (load_E, other_load_E))
    entropy = torch.special.entr
    divergence = entropy((p_E + q_E) / 2).sum() - (entropy(p_E).sum() + entropy(q_E).sum()) / 2
    return (divergence / torch.log(torch.tensor(2.0, dtype=torch.float64))).clamp(min=0).sqrt()
