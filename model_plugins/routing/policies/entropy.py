"""`entropy`: a less certain gate gives a token more experts (GeMoE, arXiv 2606.26287)."""

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from prismoe.kernels.fused_rule import ByEntropy, FusedRule
from prismoe.kernels.routing import routing_entropy, top_experts_by_count
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy, check_experts


class Entropy(RoutingPolicy):
    """From `min_experts` to `max_experts` (all by default) as the gate's entropy goes from `low` to `high`.

    Only the paper's abstract is at hand: the gating entropy measures a token's complexity and determines its
    number of experts. Inferred: the entropy is divided by its largest value, log E, and the range from `low`
    to `high` is split into equal parts, one for each number of experts.
    """

    policy: Literal["entropy"] = "entropy"
    takes_any_gate: ClassVar[bool] = True
    gives_gate_confidence: ClassVar[bool] = True
    thresholds: ClassVar[tuple[str, ...]] = ("low", "high")
    norm_topk_prob: bool
    min_experts: int = Field(default=1, ge=1)
    max_experts: int | None = Field(default=None, ge=1)
    low: float = Field(default=0.0, ge=0, le=1)
    high: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check_bounds(self) -> "Entropy":
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}: give a low below high")
        return self

    def slots(self, num_experts: int) -> int:
        check_experts("max_experts", self.max_experts, num_experts)
        slots = self.max_experts or num_experts
        if self.min_experts > slots:
            raise ValueError(
                f"min_experts is {self.min_experts}: give a number from 1 to max_experts ({slots})."
            )
        return slots

    def route(self, step: RouterInputs) -> Routing:
        slots = self.slots(step.num_experts)
        confidence = step.confidence
        entropy_T = routing_entropy(confidence.probs_TE) / math.log(max(step.num_experts, 2))
        low, high = (self.threshold_now(name, step) for name in self.thresholds)
        part_T = (entropy_T - low) / (high - low) * (slots - self.min_experts + 1)
        count_T = (self.min_experts + part_T.floor().long()).clamp(min=self.min_experts, max=slots)
        experts_TA, weights_TA = top_experts_by_count(
            confidence.logits_TE, count_T, slots, self.norm_topk_prob, confidence.scores_TE
        )
        return Routing.without_tail(experts_TA, weights_TA, count_T, confidence)

    def fused_rule(self, step: RouterInputs) -> FusedRule:
        uses = ByEntropy(self.min_experts, *(self.threshold_now(name, step) for name in self.thresholds))
        confidence = step.confidence
        slots = self.slots(step.num_experts)
        return FusedRule(confidence, uses, slots, self.norm_topk_prob, confidence.scores_TE)
