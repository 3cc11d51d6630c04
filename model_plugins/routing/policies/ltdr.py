"""`ltdr`: vision tail tokens get more experts (LTDR, arXiv 2507.01351, Eqs. 6, 7, 9, 11 and 12)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from prismoe.kernels.fused_rule import ByTail, FusedRule
from prismoe.kernels.routing import tail_tokens, top_experts_by_count
from prismoe.model_plugins.routing.policy import (
    RouterInputs,
    Routing,
    RoutingPolicy,
    check_experts,
    top_k_routing,
)


class LTDR(RoutingPolicy):
    """`text_experts` for text, `tail_experts` for vision tail tokens, `head_experts` for other vision tokens.

    A vision token is a tail token when its routing-probability variance is above the mean of its own image
    (the paper's VTT), or above a fixed `threshold`, which allows an image to be split over steps. With the
    selection "head", the vision tokens that are not tail tokens get `tail_experts` instead (the paper's VHT,
    Table 7). The default of `tail_experts` is all experts, and of the other two `top_k`.

    The paper's mean is over "the total vision token sequence" (Eq. 11), which is one image in most of its
    data; `mean_over` "request" takes the mean over all images of the request. The paper also routes "at each
    batch"; with a mean over that, a request's answer would depend on other requests.

    A request may ask for other numbers of tail and head experts, up to `request_experts`: by default the
    largest of the other numbers; 0 allows none.
    """

    policy: Literal["ltdr"] = "ltdr"
    takes_any_gate: ClassVar[bool] = True
    gives_gate_confidence: ClassVar[bool] = True
    thresholds: ClassVar[tuple[str, ...]] = ("threshold",)
    top_k: int = Field(ge=1)
    norm_topk_prob: bool
    tail_experts: int | None = Field(default=None, ge=1)
    head_experts: int | None = Field(default=None, ge=1)
    text_experts: int | None = Field(default=None, ge=1)
    selection: Literal["tail", "head"] = "tail"
    mean_over: Literal["image", "request"] = "image"
    threshold: float | None = Field(default=None, ge=0)
    request_experts: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check_mean(self) -> "LTDR":
        if self.threshold is not None and self.mean_over == "request":
            raise ValueError("a threshold replaces the mean: leave threshold or mean_over out")
        return self

    def slots(self, num_experts: int) -> int:
        for name in ("top_k", "tail_experts", "head_experts", "text_experts", "request_experts"):
            check_experts(name, getattr(self, name), num_experts)
        tail = self.tail_experts or num_experts
        head, text = self.head_experts or self.top_k, self.text_experts or self.top_k
        return max(tail, head, text, self.request_experts or 0)

    def most_request_experts(self, num_experts: int) -> int:
        return self.slots(num_experts) if self.request_experts is None else self.request_experts

    @property
    def needs_whole_images(self) -> bool:
        return self.threshold is None

    @property
    def needs_whole_requests(self) -> bool:
        return self.mean_over == "request"

    def route(self, step: RouterInputs) -> Routing:
        slots = self.slots(step.num_experts)
        confidence = step.confidence
        if step.is_text:  # as in decode: the rest is only for vision
            return top_k_routing(confidence, self.text_experts or self.top_k, self.norm_topk_prob)
        tail_T = tail_tokens(confidence.probs_TE, self._compared(step), self.threshold_now("threshold", step))
        selected_T = tail_T if self.selection == "tail" else step.is_vision_T & ~tail_T
        head, text = self.head_experts or self.top_k, self.text_experts or self.top_k
        unselected = text if head == text else torch.where(step.is_vision_T, head, text)
        count_T = torch.where(selected_T, self.tail_experts or step.num_experts, unselected)
        asked_of_tail_T, asked_of_head_T = step.asked_T2.unbind(dim=1)
        asked_T = torch.where(selected_T, asked_of_tail_T, asked_of_head_T)
        count_T = torch.where(asked_T > 0, asked_T.clamp(max=slots), count_T)
        experts_TA, weights_TA = top_experts_by_count(
            confidence.logits_TE, count_T, slots, self.norm_topk_prob, confidence.scores_TE
        )
        return Routing(experts_TA, weights_TA, count_T, tail_T, confidence)

    def fused_rule(self, step: RouterInputs) -> FusedRule:
        uses = ByTail(
            text=self.text_experts or self.top_k,
            vision=self.head_experts or self.top_k,
            selected=self.tail_experts or step.num_experts,
            threshold=self.threshold_now("threshold", step),
            selects_head=self.selection == "head",
            asked_T2=step.asked_T2,
            compared_T=self._compared(step),
        )
        confidence = step.confidence
        slots = self.slots(step.num_experts)
        return FusedRule(confidence, uses, slots, self.norm_topk_prob, confidence.scores_TE)

    def _compared(self, step: RouterInputs) -> Tensor:
        """`segment_T`, but with the same index for all vision tokens that share a mean."""
        if self.mean_over == "image" or step.request_T is None:
            return step.segment_T
        return torch.where(step.is_vision_T, step.request_T, step.segment_T)
