"""`instruction`: the instruction chooses the experts (LTDR, App. A.3, INSTRUCT; arXiv 2311.02684)."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor
from torch.nn.functional import linear

from prismoe.model_plugins.routing.request_policy import RequestPolicy, Requests


class Instruction(RequestPolicy):
    """Top-k of a gate that sees the mean of the instruction's token representations.

    LTDR and LoRA-MoE train it without a load balance loss. LTDR does not say which layer gives the
    representations; here they are the token embeddings, which are known before the first layer runs.
    """

    policy: Literal["instruction"] = "instruction"

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        return {"weight": (num_experts, hidden_size)}

    def request_logits(
        self, requests: Requests, parameters: Mapping[str, Tensor], num_experts: int
    ) -> Tensor:
        return linear(requests.instruction_RD, parameters["weight"])
