"""`frugal_vision`: one expert for each vision token, `top_k` for each text token."""

from typing import ClassVar, Literal

import torch

from prismoe.kernels.routing import top_experts_by_count
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, TopKPolicy


class FrugalVision(TopKPolicy):
    """`top_k` experts for text, one for vision."""

    policy: Literal["frugal_vision"] = "frugal_vision"
    takes_any_gate: ClassVar[bool] = True

    @property
    def uses_all_slots(self) -> bool:
        """Vision tokens leave slots unused."""
        return False

    def route(self, step: RouterInputs) -> Routing:
        """Choose the best experts by the model's own gate."""
        confidence = step.confidence
        count_T = torch.where(step.is_vision_T, 1, self.top_k)
        experts_TA, weights_TA = top_experts_by_count(
            confidence.logits_TE, count_T, self.top_k, self.norm_topk_prob, confidence.scores_TE
        )
        return Routing.without_tail(experts_TA, weights_TA, count_T, confidence)
