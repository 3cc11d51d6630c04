"""`fine_grained`: shared experts beside many fine ones (DeepSeekMoE, arXiv 2401.06066, Eqs. 9 to 11)."""

from typing import Literal

import torch
from pydantic import Field

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.fused_rule import ByModality, FusedRule
from prismoe.kernels.routing import top_experts, with_shared_experts
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy


class FineGrained(RoutingPolicy):
    """The layer's last `shared_experts` for every token at weight 1, and the `top_k` best of the others.

    A shared expert of full size beside fine ones, as in LTDR's Table 6, corresponds to several shared fine
    experts.
    """

    policy: Literal["fine_grained"] = "fine_grained"
    top_k: int = Field(ge=1)
    shared_experts: int = Field(default=1, ge=1)
    norm_topk_prob: bool = False

    def slots(self, num_experts: int) -> int:
        if self.top_k + self.shared_experts > num_experts:
            raise ValueError(
                f"top_k {self.top_k} and shared_experts {self.shared_experts} are more than the layer's "
                f"{num_experts} experts: lower one of them."
            )
        return self.top_k + self.shared_experts

    @property
    def uses_all_slots(self) -> bool:
        return True

    def gate_rows(self, num_experts: int) -> int:
        return num_experts - self.shared_experts

    def route(self, step: RouterInputs) -> Routing:
        experts_TA, weights_TA = top_experts(step.logits_TE, self.top_k, self.norm_topk_prob)
        count_T = torch.full_like(step.segment_T, self.top_k)
        routed = with_shared_experts(experts_TA, weights_TA, count_T, self.shared_experts, step.num_experts)
        return Routing.without_tail(*routed, Confidence(step.logits_TE))

    def fused_rule(self, step: RouterInputs) -> FusedRule:
        return FusedRule(
            Confidence(step.logits_TE),
            ByModality(self.top_k, self.top_k),
            self.top_k,
            self.norm_topk_prob,
            shared=self.shared_experts,
        )
