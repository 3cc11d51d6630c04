"""The router on CUDA: one launch decides where the policy has a fused rule, and another one counts."""

from functools import cache

import torch
from torch import Tensor
from vllm.logger import init_logger

from prismoe.kernels.fused_check import check_fused
from prismoe.kernels.routing import TEXT
from prismoe.kernels.triton_expert_load import count_expert_load_fused
from prismoe.kernels.triton_router import fused_router
from prismoe.model_plugins.router import PolicyRouter

logger = init_logger("vllm.prismoe.router")


class FusedRouter(PolicyRouter):
    """Decides and counts as `PolicyRouter` does, with launches instead of dozens of small operations."""

    def decide(self, hidden_TD: Tensor, logits_TE: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Route and count the running step, as `PolicyRouter.decide` does."""
        step = self.inputs(hidden_TD, logits_TE)
        rule = self.policy.fused_rule(step)
        if rule is None:
            experts_TA, weights_TA, count_T, tail_T, confidence = self.policy.route(step)
        else:
            experts_TA, weights_TA, count_T, tail_T = fused_router(rule, step.segment_T)
            confidence = rule.confidence
        experts_TA = experts_TA.int().contiguous()
        count_expert_load_fused(self._load_MC, experts_TA, count_T, tail_T, step.segment_T, confidence)
        return weights_TA.contiguous(), experts_TA, self.policy.uses_all_slots


@cache
def fused_routing_works(device: str) -> bool:
    """Whether the fused kernels run here, and do what plain PyTorch does; a warning tells if not."""
    try:
        segment_T = torch.tensor([TEXT] * 20 + [0] * 50 + [1] * 30, device=device)
        generator = torch.Generator(device).manual_seed(0)
        shape = len(segment_T), 4
        check_fused(torch.randn(shape, generator=generator, dtype=torch.float32, device=device), segment_T)
    except Exception as error:  # whatever a compiler or a driver makes of it, serving can do without
        logger.warning(
            "prismoe's fused routing does not work on this GPU, and plain PyTorch routes, which is slower. "
            "Please report it with this error: %s",
            error,
        )
        return False
    return True
