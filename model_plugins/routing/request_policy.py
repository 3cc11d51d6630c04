"""The base of policies that decide once per request: for its images, its prompt and its answer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from prismoe.model_plugins.routing.policy import LogitsPolicy, RouterInputs

NO_TASK = -1
"""The label of a request without a task."""


class Requests(NamedTuple):
    """The inputs of such a policy: R requests."""

    task_R: Tensor  # int64: the label given with the request, or NO_TASK
    instruction_RD: Tensor  # float32: the mean embedding of its prompt's text tokens; zeros where it has none


class RequestPolicy(LogitsPolicy, ABC):
    """Top-k of logits that all tokens of a request share.

    `logits` gets them as `logits_TE`, in place of a gate's.
    """

    def gate_rows(self, num_experts: int) -> int:
        return 0

    @abstractmethod
    def request_logits(
        self, requests: Requests, parameters: Mapping[str, Tensor], num_experts: int
    ) -> Tensor:
        """The logits of requests, `[R, E]` in float32; each row depends only on its own request."""

    def logits(self, step: RouterInputs) -> Tensor:
        return step.logits_TE
