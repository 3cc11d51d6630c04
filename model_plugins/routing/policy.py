"""What every routing policy is: settings read from the checkpoint or the operator, and one method."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Routing:
    """The decision for T tokens. Slot a of token t is used when `a < count_T[t]`, else its weight is 0."""

    experts_TA: Tensor  # int64
    weights_TA: Tensor  # float32
    count_T: Tensor  # int64
    tail_T: Tensor  # bool: vision tail tokens, all false where the policy knows none


class RoutingPolicy(BaseModel, ABC):
    """One routing rule. Its fields are its settings; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    needs_whole_images: ClassVar[bool] = False
    """Whether all tokens of an image must be routed in the same step."""

    @abstractmethod
    def slots(self, num_experts: int) -> int:
        """A: the largest number of experts a token can get.

        Raises ValueError when the settings make no sense for `num_experts`.
        """

    @abstractmethod
    def route(self, hidden_TD: Tensor, logits_TE: Tensor, segment_T: Tensor) -> Routing:
        """Choose experts without a host sync, a data-dependent shape or a branch on data.

        `logits_TE` are the gate's, in float32; `segment_T` as in `prismoe.kernels.routing`.
        """
