"""The measures of a token that calibration records, and that policies compare with thresholds."""

from typing import Literal

from torch import Tensor

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.routing import routing_entropy, routing_probability_variance, top_experts

Measure = Literal["variance", "entropy", "weights"]
"""A token's RPV, its entropy in nats, or the weights of its `top_k` experts."""


def measured(measure: Measure, confidence: Confidence, top_k: int, renormalises: bool) -> Tensor:
    """Each token's measure, `[T, 1]`, or weights `[T, top_k]` in falling order, in float32 as in policies."""
    if measure == "weights":
        _, weights_TA = top_experts(confidence.logits_TE, top_k, renormalises, confidence.scores_TE)
        return weights_TA.sort(dim=-1, descending=True).values
    of_token = routing_probability_variance if measure == "variance" else routing_entropy
    return of_token(confidence.probs_TE)[:, None]
