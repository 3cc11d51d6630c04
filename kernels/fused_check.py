"""LTDR's routing and counting of a step, fused and plain: to hold one against the other, and to time both."""

import torch
from torch import Tensor

from prismoe.kernels.expert_load import Confidence, count_expert_load, empty_load
from prismoe.kernels.fused_rule import ByTail, FusedRule
from prismoe.kernels.routing import router_probabilities, tail_tokens, top_experts_by_count
from prismoe.kernels.triton_expert_load import count_expert_load_fused
from prismoe.kernels.triton_router import fused_router

TEXT_EXPERTS, HEAD_EXPERTS = 2, 1
"""A tail token uses all experts."""


def route_fused(logits_TE: Tensor, segment_T: Tensor, load_MC: Tensor) -> tuple[Tensor, Tensor]:
    """Experts and weights of T tokens, in two launches that also add to `load_MC`."""
    experts = logits_TE.shape[1]
    confidence = Confidence(logits_TE)
    uses = ByTail(TEXT_EXPERTS, HEAD_EXPERTS, experts, threshold=None, selects_head=False)
    routing = fused_router(FusedRule(confidence, uses, experts, renormalize=True), segment_T)
    experts_TA, weights_TA, count_T, tail_T = routing
    count_expert_load_fused(load_MC, experts_TA, count_T, tail_T, segment_T, confidence)
    return experts_TA, weights_TA


def route_plain(logits_TE: Tensor, segment_T: Tensor, load_MC: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch."""
    experts = logits_TE.shape[1]
    tail_T = tail_tokens(router_probabilities(logits_TE), segment_T)
    others_T = torch.where(segment_T >= 0, HEAD_EXPERTS, TEXT_EXPERTS)
    count_T = torch.where(tail_T, experts, others_T)
    experts_TA, weights_TA = top_experts_by_count(logits_TE, count_T, experts, renormalize=True)
    count_expert_load(load_MC, experts_TA, count_T, tail_T, segment_T, Confidence(logits_TE))
    return experts_TA, weights_TA


def check_fused(logits_TE: Tensor, segment_T: Tensor) -> None:
    """Route and count a step both ways. Raises AssertionError where they differ."""
    load_MC, expected_load_MC = (empty_load(logits_TE.shape[1]).to(logits_TE.device) for _ in range(2))
    experts_TA, weights_TA = route_fused(logits_TE, segment_T, load_MC)
    expected_TA, expected_weights_TA = route_plain(logits_TE, segment_T, expected_load_MC)
    torch.testing.assert_close(experts_TA.long(), expected_TA, rtol=0, atol=0)
    torch.testing.assert_close(weights_TA, expected_weights_TA)
    # Numbers of tokens are equal; entropy and RPV are sums of rounded parts.
    torch.testing.assert_close(load_MC.double(), expected_load_MC.double(), rtol=1e-5, atol=0.1)
