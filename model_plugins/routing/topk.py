"""`topk`: the same number of experts for every token, as MoE-LLaVA routes (LTDR, Eqs. 6 and 7)."""

from typing import Literal

import torch
from pydantic import Field

from prismoe.kernels.routing import router_probabilities, top_experts
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy


class TopK(RoutingPolicy):
    """Softmax over all experts, the k most probable, their probabilities renormalised or not."""

    policy: Literal["topk"] = "topk"
    top_k: int = Field(ge=1)
    norm_topk_prob: bool

    def slots(self, num_experts: int) -> int:
        if self.top_k > num_experts:
            raise ValueError(f"top_k is {self.top_k}, but the layer has {num_experts} experts: lower top_k.")
        return self.top_k

    def route(self, step: RouterInputs) -> Routing:
        probs_TE = router_probabilities(step.logits_TE)
        count_T = torch.full_like(step.segment_T, self.top_k)
        experts_TA, weights_TA = top_experts(probs_TE, count_T, self.top_k, self.norm_topk_prob)
        return Routing(
            experts_TA, weights_TA, count_T, tail_T=torch.zeros_like(step.segment_T, dtype=torch.bool)
        )
