"""`ltdr`: vision tail tokens get more experts (LTDR, arXiv 2507.01351, Eqs. 6, 7, 9, 11 and 12)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prismoe.kernels.routing import router_probabilities, tail_tokens, top_experts
from prismoe.model_plugins.routing.policy import Routing, RoutingPolicy


class LTDR(RoutingPolicy):
    """Top-k for text and vision head tokens; `tail_experts` (all by default) for vision tail tokens.

    A vision token is a tail token when its routing-probability variance is above the mean of its own image.
    """

    needs_whole_images: ClassVar[bool] = True

    policy: Literal["ltdr"] = "ltdr"
    top_k: int = Field(ge=1)
    norm_topk_prob: bool
    tail_experts: int | None = Field(default=None, ge=1)

    def slots(self, num_experts: int) -> int:
        tail_experts = self.tail_experts or num_experts
        if not self.top_k <= tail_experts <= num_experts:
            raise ValueError(
                f"tail_experts is {tail_experts}: give a number from top_k ({self.top_k}) "
                f"to the layer's {num_experts} experts."
            )
        return tail_experts

    def route(self, hidden_TD: Tensor, logits_TE: Tensor, segment_T: Tensor) -> Routing:
        slots = self.slots(logits_TE.shape[1])
        probs_TE = router_probabilities(logits_TE)
        tail_T = tail_tokens(probs_TE, segment_T)
        count_T = torch.where(tail_T, slots, self.top_k)
        experts_TA, weights_TA = top_experts(probs_TE, count_T, slots, self.norm_topk_prob)
        return Routing(experts_TA, weights_TA, count_T, tail_T)
