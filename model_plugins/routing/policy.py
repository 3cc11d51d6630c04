"""What every routing policy is: settings read from the checkpoint or the operator, and one rule."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict
from torch import Tensor


class RouterInputs(NamedTuple):
    """What a policy sees of a step's T tokens in one MoE layer."""

    hidden_TD: Tensor  # in the model's dtype
    logits_TE: Tensor  # float32, the gate's: as many columns as the policy's `gate_rows` says
    segment_T: Tensor  # int64, as in `prismoe.kernels.routing`
    asked_T2: (
        Tensor  # int32: the experts that its request asks for vision tail and head tokens; 0 asks nothing
    )
    parameters: Mapping[str, Tensor]  # float32, those that `RoutingPolicy.parameters` names
    num_experts: int


class Routing(NamedTuple):
    """The decision for T tokens. Slot a of token t is used when `a < count_T[t]`, else its weight is 0.

    Each token uses at least its first slot. An unused slot repeats the token's first expert.
    """

    experts_TA: Tensor  # int64
    weights_TA: Tensor  # float32
    count_T: Tensor  # int64
    tail_T: Tensor  # bool: vision tail tokens, all false where the policy knows none


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

    @property
    def needs_whole_images(self) -> bool:
        """Whether all tokens of an image must be routed in the same step."""
        return False

    def request_experts(self, num_experts: int) -> int:
        """The most experts that a request may ask for its vision tokens (`asked_T2`); 0: none."""
        return 0

    def gate_rows(self, num_experts: int) -> int:
        """How many logits the layer's linear gate gives: 0 where the policy has a router of its own."""
        return num_experts

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the tensors that the policy owns in a checkpoint, by name."""
        return {}
