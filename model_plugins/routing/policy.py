"""The base of every routing policy: settings from the checkpoint or the operator, and one rule."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.fused_rule import ByModality, FusedRule, MixtureRule
from prismoe.kernels.routing import top_experts
from prismoe.model_plugins.routing.gate import SOFTMAX, Gate

POLICY_MODALITIES = ("text", "vision")
"""The modalities that policies distinguish. Vision is images and videos; everything else counts as text."""


class RouterInputs(NamedTuple):
    """The inputs of a policy: a step's T tokens in one MoE layer."""

    hidden_TD: Tensor  # in the model's dtype
    logits_TE: Tensor  # float32: the gate's, with `gate_rows` columns, or the request's
    segment_T: Tensor  # int64, as in `prismoe.kernels.routing`
    asked_T2: Tensor  # int32: the experts that its request asks for vision tail and head tokens, or 0
    parameters: Mapping[str, Tensor]  # float32: those of `RoutingPolicy.parameters`, and thresholds
    num_experts: int
    is_text: bool = False  # whether the step is known to hold no image; set only where checking is free
    gate: Gate = SOFTMAX  # how the model scores logits
    request_T: Tensor | None = None  # int64: its request's index; None if requests have at most one image

    @property
    def confidence(self) -> Confidence:
        """The gate's probabilities and ranking, from the logits."""
        return self.gate.confidence(self.logits_TE)

    @property
    def is_vision_T(self) -> Tensor:
        """Whether each token belongs to an image or a video, boolean."""
        return self.segment_T >= 0


class Routing(NamedTuple):
    """The decision for T tokens. Token t uses slot a when `a < count_T[t]`; other slots have weight 0.

    A is the policy's `slots`, or less if no token of the step uses more. A token may use none. An unused slot
    repeats the token's first expert, even if that is not used either: a kernel may run it, at weight 0.
    """

    experts_TA: Tensor  # int64 or int32
    weights_TA: Tensor  # float32
    given_count_T: Tensor | None  # int64 or int32, `count_T`; None where every token uses all slots
    given_tail_T: Tensor | None  # bool, `tail_T`; None where there are none
    confidence: Confidence | None  # None where the policy has no probabilities or does not rank by them

    @classmethod
    def without_tail(
        cls, experts_TA: Tensor, weights_TA: Tensor, count_T: Tensor, confidence: Confidence | None
    ) -> Self:
        """The routing of a policy without tail tokens."""
        return cls(experts_TA, weights_TA, count_T, None, confidence)

    @classmethod
    def of_equal_counts(cls, experts_TA: Tensor, weights_TA: Tensor, confidence: Confidence | None) -> Self:
        """The routing of a policy without tail tokens, under which every token uses all of its slots."""
        return cls(experts_TA, weights_TA, None, None, confidence)

    @property
    def count_T(self) -> Tensor:
        """The number of slots that each token uses."""
        if self.given_count_T is None:
            num_tokens, slots = self.experts_TA.shape
            return self.experts_TA.new_full((num_tokens,), slots)
        return self.given_count_T

    @property
    def tail_T(self) -> Tensor:
        """Whether each token is a vision tail token, boolean."""
        if self.given_tail_T is None:
            return self.experts_TA.new_zeros(len(self.experts_TA), dtype=torch.bool)
        return self.given_tail_T


def check_experts(setting: str, value: int | None, most: int) -> None:
    """Raise ValueError when a setting asks for more experts than there are."""
    if value is not None and value > most:
        raise ValueError(f"{setting} is {value}: give a number from 1 to the layer's {most} experts.")


class RoutingPolicy(BaseModel, ABC):
    """A routing rule. Its fields are its settings; unknown settings are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: str
    """The policy's name; a subclass narrows it to a Literal with that name as its default."""

    @abstractmethod
    def slots(self, num_experts: int) -> int:
        """A: the largest number of experts that a token can use.

        Raises ValueError when the settings don't fit `num_experts`.
        """

    @abstractmethod
    def route(self, step: RouterInputs) -> Routing:
        """Choose experts without a host sync, a data-dependent shape or a branch on data."""

    def fused_rule(self, step: RouterInputs) -> FusedRule | MixtureRule | None:
        """The rule of `route` for a fused router; None where no fused router supports it."""
        return None

    thresholds: ClassVar[tuple[str, ...]] = ()
    """The settings, all of them numbers, that an administrator may change while requests run."""

    def threshold_now(self, name: str, step: RouterInputs) -> Any:
        """A threshold's value in the step: a 0-d tensor where it may change, else the setting."""
        return step.parameters.get(name, getattr(self, name))

    takes_any_gate: ClassVar[bool] = False
    """Whether the rule works under any kind of gate, not only under MoE-LLaVA's softmax."""
    gives_gate_confidence: ClassVar[bool] = False
    """Whether the confidence in `route`'s result is the gate's own, `RouterInputs.confidence`."""

    @property
    def needs_whole_images(self) -> bool:
        """Whether all tokens of an image must be routed in the same step."""
        return False

    @property
    def needs_whole_requests(self) -> bool:
        """Whether all images of a request must be routed in the same step."""
        return False

    @property
    def uses_all_slots(self) -> bool:
        """Whether every token uses all of its slots, so that none can be skipped."""
        return False

    def most_request_experts(self, num_experts: int) -> int:
        """The most experts that a request may ask for its vision tokens (`asked_T2`); 0 if it may not ask."""
        return 0

    def gate_rows(self, num_experts: int) -> int:
        """The number of logits of the layer's linear gate: 0 where the policy has its own router."""
        return num_experts

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the tensors that the policy owns in a checkpoint, by name."""
        return {}


def top_k_routing(confidence: Confidence, k: int, renormalize: bool) -> Routing:
    """The k best experts for every token."""
    chosen = top_experts(confidence.logits_TE, k, renormalize, confidence.scores_TE)
    return Routing.of_equal_counts(*chosen, confidence)


class TopKPolicy(RoutingPolicy, ABC):
    """A policy that gives a token `top_k` experts, or fewer where `uses_all_slots` is overridden."""

    top_k: int = Field(ge=1)
    norm_topk_prob: bool
    """Whether the weights of a token's experts are scaled to a sum of 1."""

    def slots(self, num_experts: int) -> int:
        check_experts("top_k", self.top_k, num_experts)
        return self.top_k

    @property
    def uses_all_slots(self) -> bool:
        return True

    def top_k_rule(self, confidence: Confidence, scores_TE: Tensor | None = None) -> FusedRule:
        """The rule of a fused router that gives every token its `top_k` best experts."""
        uses = ByModality(self.top_k, self.top_k)
        return FusedRule(confidence, uses, self.top_k, self.norm_topk_prob, scores_TE)


class LogitsPolicy(TopKPolicy, ABC):
    """A policy that gives a token the `top_k` most probable experts by the policy's own logits."""

    @abstractmethod
    def logits(self, step: RouterInputs) -> Tensor:
        """The policy's logits, `[T, E]` in float32."""

    def route(self, step: RouterInputs) -> Routing:
        confidence = step.gate.confidence(self.logits(step))
        return top_k_routing(confidence, self.top_k, self.norm_topk_prob)

    def fused_rule(self, step: RouterInputs) -> FusedRule:
        confidence = step.gate.confidence(self.logits(step))
        return self.top_k_rule(confidence, confidence.scores_TE)
