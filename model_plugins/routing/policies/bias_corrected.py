"""`bias_corrected`: a bias picks, the unbiased score weighs (AuxFree-MoE, arXiv 2408.15664, Eq. 3)."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.fused_rule import FusedRule
from prismoe.kernels.routing import picked_experts, router_probabilities
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, TopKPolicy


class BiasCorrected(TopKPolicy):
    """Top-k of score plus bias, which training moved to balance the load; the score alone is the weight.

    The score is the gate's softmax, or its sigmoid, as in DeepSeek-V3.
    """

    policy: Literal["bias_corrected"] = "bias_corrected"
    score: Literal["softmax", "sigmoid"] = "softmax"

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        return {"expert_bias": (num_experts,)}

    def route(self, step: RouterInputs) -> Routing:
        if self.score == "softmax":
            logits_TE, scores_TE = step.logits_TE, router_probabilities(step.logits_TE)
        else:
            logits_TE, scores_TE = logsigmoid(step.logits_TE), torch.sigmoid(step.logits_TE)
        biased_TE = scores_TE + step.parameters["expert_bias"]
        picked = picked_experts(biased_TE, scores_TE, self.top_k, self.norm_topk_prob)
        return Routing.of_equal_counts(*picked, Confidence(logits_TE, biased_TE))

    def fused_rule(self, step: RouterInputs) -> FusedRule | None:
        if self.score == "sigmoid":  # its weights are not a softmax
            return None
        biased_TE = router_probabilities(step.logits_TE) + step.parameters["expert_bias"]
        return self.top_k_rule(Confidence(step.logits_TE, biased_TE), biased_TE)
