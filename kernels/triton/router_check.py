"""Routing of random steps by `ltdr` and `gmm`, fused and plain: to compare them, and to time both."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prismoe.kernels.expert_load import Confidence, count_expert_load, empty_load
from prismoe.kernels.fused_rule import ByTail, FusedRule, MixtureRule
from prismoe.kernels.mixture import best_posteriors, log_joint
from prismoe.kernels.routing import router_probabilities, tail_tokens, top_experts_by_count
from prismoe.kernels.triton.expert_load import count_expert_load_fused
from prismoe.kernels.triton.mixture import mixture_router
from prismoe.kernels.triton.router import fused_router

TEXT_EXPERTS, HEAD_EXPERTS = 2, 1
"""Of a token of text, and of a vision token that is no tail token; tail tokens use all."""


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


def random_logits(segment_T: Tensor, experts: int) -> Tensor:
    """Of as many tokens, on the same device, `[T, E]`."""
    return _random((len(segment_T), experts), segment_T.device)


def check_routing(segment_T: Tensor, experts: int) -> None:
    """Route and count a step both ways. Raises AssertionError where they differ."""
    logits_TE = random_logits(segment_T, experts)
    load_MC, expected_load_MC = (empty_load(experts).to(segment_T.device) for _ in range(2))
    experts_TA, weights_TA = route_fused(logits_TE, segment_T, load_MC)
    expected_TA, expected_weights_TA = route_plain(logits_TE, segment_T, expected_load_MC)
    torch.testing.assert_close(experts_TA.long(), expected_TA, rtol=0, atol=0)
    torch.testing.assert_close(weights_TA, expected_weights_TA)
    # Numbers of tokens are equal; entropy and RPV are sums of rounded parts.
    torch.testing.assert_close(load_MC.double(), expected_load_MC.double(), rtol=1e-5, atol=0.1)


def random_mixture(tokens: int, experts: int, device: torch.device | str) -> MixtureRule:
    """A step and parameters of two mixtures, of the sizes that `gmm` has by default."""
    shape = 2, experts, 16
    return MixtureRule(
        _random((tokens, 32), device),
        _random(shape, device).flatten(1).log_softmax(dim=-1).view(shape),
        *_random((2, *shape, 32), device),
    )


def mixture_plain(rule: MixtureRule) -> tuple[Tensor, Tensor]:
    """What `mixture_router` does, in plain PyTorch."""
    experts_TK, posteriors_TK = best_posteriors(log_joint(*rule))
    return experts_TK, torch.softmax(posteriors_TK, dim=-1).float()


def check_mixture(rule: MixtureRule) -> None:
    """Route a step both ways. Raises AssertionError where they differ by more than float32's rounding."""
    experts_TK, weights_TK = mixture_router(*rule)
    expected_TK, expected_weights_TK = mixture_plain(rule)
    best_TKE = log_joint(*rule).amax(dim=-1)
    chosen_TK, highest_TK = (
        best_TKE.gather(-1, each_TK.long()[..., None]) for each_TK in (experts_TK, expected_TK)
    )
    torch.testing.assert_close(chosen_TK, highest_TK, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weights_TK, expected_weights_TK, rtol=1e-4, atol=1e-4)


def _random(shape: Sequence[int], device: torch.device | str) -> Tensor:
    """The same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)
