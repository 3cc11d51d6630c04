"""`dual_threshold`: experts of little importance are skipped, by modality (MoDES, arXiv 2511.15690)."""

from typing import Literal

import torch
from pydantic import Field

from prismoe.kernels.routing import router_probabilities, top_experts
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, TopKPolicy


class DualThreshold(TopKPolicy):
    """Top-k without the experts whose importance is below the threshold of the token's modality.

    An expert's importance is the layer's `importance` (the paper's α) times its routing probability.
    Inferred, as the text at hand does not say: a token keeps its best expert in any case, and where
    probabilities are renormalised, they are so over the experts that are kept.
    """

    policy: Literal["dual_threshold"] = "dual_threshold"
    importance: float = Field(default=1.0, ge=0)
    text_threshold: float = Field(default=0.0, ge=0)
    vision_threshold: float = Field(default=0.0, ge=0)

    def route(self, step: RouterInputs) -> Routing:
        probs_TE = router_probabilities(step.logits_TE)
        threshold_T = torch.where(step.is_vision_T, self.vision_threshold, self.text_threshold)
        kept_TE = self.importance * probs_TE >= threshold_T[:, None]
        count_T = kept_TE.sum(dim=-1).clamp(min=1, max=self.top_k)
        experts_TA, weights_TA = top_experts(probs_TE, count_T, self.top_k, self.norm_topk_prob)
        return Routing.without_tail(experts_TA, weights_TA, count_T)
