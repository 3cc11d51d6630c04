"""`modality_groups`: each modality has its own experts (LTDR, App. B.1; MoMa, arXiv 2407.21770)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.fused_rule import ByModality, FusedRule
from prismoe.kernels.routing import router_probabilities, top_experts_by_count, with_shared_experts
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy, check_experts


class ModalityGroups(RoutingPolicy):
    """A softmax over the experts of the token's modality, and the most probable of them.

    The first `vision_group` experts are for vision (half of them by default), the next ones for text, and the
    last `shared_experts` for every token, at weight 1. With 4 experts the defaults are LTDR's v2Top1-t2Top1;
    with 8 experts and 2 for `vision_experts` and `text_experts` it is v4Top2-t4Top2. The groups of a model's
    own gate are ignored: they could exclude all experts of a modality.
    """

    policy: Literal["modality_groups"] = "modality_groups"
    takes_any_gate: ClassVar[bool] = True
    vision_group: int | None = Field(default=None, ge=1)
    vision_experts: int = Field(default=1, ge=1)
    text_experts: int = Field(default=1, ge=1)
    shared_experts: int = Field(default=0, ge=0)
    norm_topk_prob: bool = False

    def slots(self, num_experts: int) -> int:
        vision, text = self._group_sizes(num_experts)
        if text < 1:
            raise ValueError(
                f"vision_group {vision} and shared_experts {self.shared_experts} leave none of the layer's "
                f"{num_experts} experts to text: lower one of them."
            )
        check_experts("vision_experts", self.vision_experts, vision)
        check_experts("text_experts", self.text_experts, text)
        return max(self.vision_experts, self.text_experts) + self.shared_experts

    @property
    def uses_all_slots(self) -> bool:
        return self.vision_experts == self.text_experts

    def gate_rows(self, num_experts: int) -> int:
        return num_experts - self.shared_experts

    def route(self, step: RouterInputs) -> Routing:
        confidence, ranking_TE = self._ranked(step)
        count_T = torch.where(step.is_vision_T, self.vision_experts, self.text_experts)
        slots = max(self.vision_experts, self.text_experts)
        experts_TA, weights_TA = top_experts_by_count(
            confidence.logits_TE, count_T, slots, self.norm_topk_prob, ranking_TE
        )
        if self.shared_experts:
            experts_TA, weights_TA, count_T = with_shared_experts(
                experts_TA, weights_TA, count_T, self.shared_experts, step.num_experts
            )
        return Routing.without_tail(experts_TA, weights_TA, count_T, confidence)

    def fused_rule(self, step: RouterInputs) -> FusedRule:
        confidence, ranking_TE = self._ranked(step)
        return FusedRule(
            confidence,
            ByModality(self.text_experts, self.vision_experts),
            max(self.vision_experts, self.text_experts),
            self.norm_topk_prob,
            ranking_TE,
            shared=self.shared_experts,
        )

    def _ranked(self, step: RouterInputs) -> tuple[Confidence, Tensor | None]:
        """The confidence in the token's own experts, and the scores that rank them, if not the logits."""
        vision, _ = self._group_sizes(step.num_experts)
        is_visions_E = torch.arange(step.logits_TE.shape[1], device=step.logits_TE.device) < vision
        others_TE = is_visions_E != step.is_vision_T[:, None]
        of_all = step.gate._replace(groups=None).confidence(step.logits_TE)
        logits_TE = of_all.logits_TE.masked_fill(others_TE, -torch.inf)
        scores_TE = router_probabilities(logits_TE) if of_all.scores_TE is None else of_all.scores_TE
        confidence = Confidence(logits_TE, scores_TE.masked_fill(others_TE, -torch.inf))
        return confidence, None if of_all.scores_TE is None else confidence.scores_TE

    def _group_sizes(self, num_experts: int) -> tuple[int, int]:
        routed = num_experts - self.shared_experts
        vision = self.vision_group or routed // 2
        return vision, routed - vision
