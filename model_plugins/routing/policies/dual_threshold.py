"""`dual_threshold`: unimportant experts are skipped, by modality (MoDES, arXiv 2511.15690)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from prismoe.kernels.fused_rule import ByImportance, FusedRule
from prismoe.kernels.routing import ranked_experts, top_experts, use_first
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, TopKPolicy


class DualThreshold(TopKPolicy):
    """Top-k without the experts whose importance is below the threshold of the token's modality.

    An expert's importance is its weight among the k times the layer's own importance, for each modality (the
    paper's α). The weights of the remaining experts stay unchanged. The paper does not say whether a token
    may lose its best expert; here, by inference, it keeps it. The code that its authors released
    (github.com/ModelTC/MoDES, models/qwen3.py) doesn't: without `keep_best` a token may use no expert, and
    then gets nothing from those that are not shared. That code also skips no experts for the special tokens
    of a chat template; here they are text.
    """

    policy: Literal["dual_threshold"] = "dual_threshold"
    takes_any_gate: ClassVar[bool] = True
    gives_gate_confidence: ClassVar[bool] = True
    thresholds: ClassVar[tuple[str, ...]] = ("text_threshold", "vision_threshold")
    text_importance: float = Field(default=1.0, ge=0)
    vision_importance: float = Field(default=1.0, ge=0)
    text_threshold: float = Field(default=0.0, ge=0)
    vision_threshold: float = Field(default=0.0, ge=0)
    keep_best: bool = True

    @property
    def uses_all_slots(self) -> bool:
        return False

    def route(self, step: RouterInputs) -> Routing:
        confidence = step.confidence
        experts_TA, weights_TA = top_experts(
            confidence.logits_TE, self.top_k, self.norm_topk_prob, confidence.scores_TE
        )
        if confidence.scores_TE is not None:  # the best by score is not always the heaviest
            order_TA, weights_TA = ranked_experts(weights_TA, self.top_k)
            experts_TA = experts_TA.gather(1, order_TA)
        importance_T = torch.where(step.is_vision_T, self.vision_importance, self.text_importance)
        text_threshold, vision_threshold = (self.threshold_now(name, step) for name in self.thresholds)
        threshold_T = torch.where(step.is_vision_T, vision_threshold, text_threshold)
        count_T = (importance_T[:, None] * weights_TA >= threshold_T[:, None]).sum(dim=-1)
        count_T = count_T.clamp(min=int(self.keep_best))
        experts_TA, weights_TA = use_first(experts_TA, weights_TA, count_T)
        return Routing.without_tail(experts_TA, weights_TA, count_T, confidence)

    def fused_rule(self, step: RouterInputs) -> FusedRule | None:
        confidence = step.confidence
        if confidence.scores_TE is not None:  # the kernel expects the heaviest experts first
            return None
        uses = ByImportance(
            int(self.keep_best),
            self.text_importance,
            self.vision_importance,
            *(self.threshold_now(name, step) for name in self.thresholds),
        )
        return FusedRule(confidence, uses, self.top_k, self.norm_topk_prob)
