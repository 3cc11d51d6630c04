"""The router on CUDA: one launch decides where the policy has a fused rule, and another one counts."""

from functools import cache, partial

import torch
from torch import Tensor

from prismoe.kernels.fused_check import check_mixture, check_routing, random_mixture
from prismoe.kernels.fused_rule import FusedRule, MixtureRule
from prismoe.kernels.routing import TEXT
from prismoe.kernels.triton_expert_load import count_expert_load_fused
from prismoe.kernels.triton_mixture import mixture_router
from prismoe.kernels.triton_router import fused_router
from prismoe.model_plugins.kernel_check import kernel_works
from prismoe.model_plugins.router import PolicyRouter
from prismoe.model_plugins.routing.policy import RouterInputs, Routing


class FusedRouter(PolicyRouter):
    """Decides and counts as `PolicyRouter` does, with launches instead of dozens of small operations."""

    def decide(self, hidden_TD: Tensor, logits_TE: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Route and count the running step, as `PolicyRouter.decide` does."""
        step = self.inputs(hidden_TD, logits_TE)
        experts_TA, weights_TA, count_T, tail_T, confidence = self._route(step)
        experts_TA = experts_TA.int().contiguous()
        count_expert_load_fused(self._load_MC, experts_TA, count_T, tail_T, step.segment_T, confidence)
        return weights_TA.contiguous(), experts_TA, self.policy.uses_all_slots

    def _route(self, step: RouterInputs) -> Routing:
        match self.policy.fused_rule(step):
            case FusedRule() as rule:
                return Routing(*fused_router(rule, step.segment_T), rule.confidence)
            case MixtureRule() as rule:
                return Routing.of_equal_counts(*mixture_router(*rule), None)
            case None:
                return self.policy.route(step)


@cache
def fused_routing_works(device: str) -> bool:
    """Whether the fused kernels run here, and do what plain PyTorch does."""
    return kernel_works(partial(_check, device), "fused routing", "plain PyTorch routes, which is slower")


def _check(device: str) -> None:
    check_routing(torch.tensor([TEXT] * 20 + [0] * 50 + [1] * 30, device=device), experts=4)
    check_mixture(random_mixture(tokens=100, experts=4, device=device))
