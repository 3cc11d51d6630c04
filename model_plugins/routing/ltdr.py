"""`ltdr`: vision tail tokens get more experts (LTDR, arXiv 2507.01351, Eqs. 6, 7, 9, 11 and 12)."""

from typing import Literal

import torch
from pydantic import Field

from prismoe.kernels.routing import router_probabilities, tail_tokens, top_experts
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy


class LTDR(RoutingPolicy):
    """Top-k for text and vision head tokens; `tail_experts` (all by default) for vision tail tokens.

    A vision token is a tail token when its routing-probability variance is above the mean of its own image.
    """

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

    @property
    def needs_whole_images(self) -> bool:
        return True

    def route(self, step: RouterInputs) -> Routing:
        slots = self.slots(step.num_experts)
        probs_TE = router_probabilities(step.logits_TE)
        tail_T = tail_tokens(probs_TE, step.segment_T)
        count_T = torch.where(tail_T, slots, self.top_k)
        experts_TA, weights_TA = top_experts(probs_TE, count_T, slots, self.norm_topk_prob)
        return Routing(experts_TA, weights_TA, count_T, tail_T)
