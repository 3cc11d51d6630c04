"""What every routing policy is: settings read from the checkpoint or the operator, and one rule."""

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
"""What policies tell apart. Vision is images and videos; what is neither is text to them."""


class RouterInputs(NamedTuple):
    """What a policy sees of a step's T tokens in one MoE layer."""

    hidden_TD: Tensor  # in the model's dtype
    logits_TE: Tensor  # float32, the gate's: as many columns as `gate_rows` says; or the request's
    segment_T: Tensor  # int64, as in `prismoe.kernels.routing`
    asked_T2: Tensor  # int32: the experts its request asks for vision tail and head tokens; 0 asks nothing
    parameters: Mapping[str, Tensor]  # float32, as `RoutingPolicy.parameters` names them; and thresholds
    num_experts: int
    is_text: bool = False  # whether the step is known to hold no image: just where looking is free
    gate: Gate = SOFTMAX  # what the model makes of the logits
    request_T: Tensor | None = None  # int64: its request's index; None where a request has one image at most

    @property
    def confidence(self) -> Confidence:
        """The probabilities that the gate makes of the logits, and what ranks the experts."""
        return self.gate.confidence(self.logits_TE)

    @property
    def is_vision_T(self) -> Tensor:
        """Which tokens are an image's."""
        return self.segment_T >= 0


class Routing(NamedTuple):
    """The decision for T tokens. Slot a of token t is used when `a < count_T[t]`, else its weight is 0.

    A is the policy's `slots`, or less where no token of the step uses more. A token may use none. An unused
    slot repeats the token's first expert, be that used or not: a kernel may run it, at weight 0.
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
        """The routing of a policy that knows no tail tokens."""
        return cls(experts_TA, weights_TA, count_T, None, confidence)

    @classmethod
    def of_equal_counts(cls, experts_TA: Tensor, weights_TA: Tensor, confidence: Confidence | None) -> Self:
        """The same, where every token uses all of its slots."""
        return cls(experts_TA, weights_TA, None, None, confidence)

    @property
    def count_T(self) -> Tensor:
        """How many slots each token uses."""
        if self.given_count_T is None:
            num_tokens, slots = self.experts_TA.shape
            return self.experts_TA.new_full((num_tokens,), slots)
        return self.given_count_T

    @property
    def tail_T(self) -> Tensor:
        """Which tokens are vision tail tokens, bool."""
        if self.given_tail_T is None:
            return self.experts_TA.new_zeros(len(self.experts_TA), dtype=torch.bool)
        return self.given_tail_T


def check_experts(setting: str, value: int | None, most: int) -> None:
    """Raise ValueError with a sentence when a setting asks for more experts than there are."""
    if value is not None and value > most:
        raise ValueError(f"{setting} is {value}: give a number from 1 to the layer's {most} experts.")


class RoutingPolicy(BaseModel, ABC):
    """One routing rule. Its fields are its settings; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: str
    """The policy's name; a subclass narrows it to a Literal with that name as its default."""

    @abstractmethod
    def slots(self, num_experts: int) -> int:
        """A: the largest number of experts a token can get.

        Raises ValueError when the settings make no sense for `num_experts`.
        """

    @abstractmethod
    def route(self, step: RouterInputs) -> Routing:
        """Choose experts without a host sync, a data-dependent shape or a branch on data."""

    def fused_rule(self, step: RouterInputs) -> FusedRule | MixtureRule | None:
        """What `route` does in the words of a fused router; None where they don't say it."""
        return None

    thresholds: ClassVar[tuple[str, ...]] = ()
    """The settings, numbers all, that an administrator may change while requests run."""

    def threshold_now(self, name: str, step: RouterInputs) -> Any:
        """A threshold as it stands in the step: a 0-d tensor where it may change, else the setting."""
        return step.parameters.get(name, getattr(self, name))

    takes_any_gate: ClassVar[bool] = False
    """Whether the rule holds under a gate of any kind, not under MoE-LLaVA's softmax alone."""
    gives_gate_confidence: ClassVar[bool] = False
    """Whether the confidence that `route` gives is the gate's own, `RouterInputs.confidence`."""

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
        """Whether every token uses all of its slots, so that there are none to leave out."""
        return False

    def most_request_experts(self, num_experts: int) -> int:
        """The most experts that a request may ask for its vision tokens (`asked_T2`); 0: none."""
        return 0

    def gate_rows(self, num_experts: int) -> int:
        """How many logits the layer's linear gate gives: 0 where the policy has a router of its own."""
        return num_experts

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the tensors that the policy owns in a checkpoint, by name."""
        return {}


def top_k_routing(confidence: Confidence, k: int, renormalize: bool) -> Routing:
    """The k best experts for every token."""
    chosen = top_experts(confidence.logits_TE, k, renormalize, confidence.scores_TE)
    return Routing.of_equal_counts(*chosen, confidence)


class TopKPolicy(RoutingPolicy, ABC):
    """A policy under which a token uses `top_k` experts, or less where `uses_all_slots` is overridden."""

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
        """The `top_k` best experts for every token."""
        uses = ByModality(self.top_k, self.top_k)
        return FusedRule(confidence, uses, self.top_k, self.norm_topk_prob, scores_TE)


class LogitsPolicy(TopKPolicy, ABC):
    """The `top_k` most probable experts by logits of the policy's own."""

    @abstractmethod
    def logits(self, step: RouterInputs) -> Tensor:
        """`[T, E]` in float32."""

    def route(self, step: RouterInputs) -> Routing:
        confidence = step.gate.confidence(self.logits(step))
        return top_k_routing(confidence, self.top_k, self.norm_topk_prob)

    def fused_rule(self, step: RouterInputs) -> FusedRule:
        confidence = step.gate.confidence(self.logits(step))
        return self.top_k_rule(confidence, confidence.scores_TE)
