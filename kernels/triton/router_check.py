"""Routes random steps by `ltdr` and `gmm`, fused and plain: to compare them, and to time both."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.fused_rule import ByTail, FusedRule, MixtureRule
from prismoe.kernels.mixture import best_posteriors, log_joint
from prismoe.kernels.routing import router_probabilities, tail_tokens, top_experts_by_count
from prismoe.kernels.triton.mixture import mixture_router
from prismoe.kernels.triton.router import FusedRouting, fused_router

TEXT_EXPERTS, HEAD_EXPERTS = 2, 1
"""Experts of a text token, and of a vision token that is no tail token; tail tokens use all experts."""


def route_fused(logits_TE: Tensor, segment_T: Tensor) -> FusedRouting:
    """Route T tokens in one launch."""
    experts = logits_TE.shape[1]
    uses = ByTail(TEXT_EXPERTS, HEAD_EXPERTS, experts, threshold=None, selects_head=False)
    return fused_router(FusedRule(Confidence(logits_TE), uses, experts, renormalize=True), segment_T)


def route_plain(logits_TE: Tensor, segment_T: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Route in plain PyTorch: experts, weights, counts and tail flags."""
    experts = logits_TE.shape[1]
    tail_T = tail_tokens(router_probabilities(logits_TE), segment_T)
    others_T = torch.where(segment_T >= 0, HEAD_EXPERTS, TEXT_EXPERTS)
    count_T = torch.where(tail_T, experts, others_T)
    experts_TA, weights_TA = top_experts_by_count(logits_TE, count_T, experts, renormalize=True)
    return experts_TA, weights_TA, count_T, tail_T


def random_logits(segment_T: Tensor, experts: int) -> Tensor:
    """Random logits for the tokens of `segment_T`, on its device, `[T, E]`."""
    return _random((len(segment_T), experts), segment_T.device)


def check_routing(segment_T: Tensor, experts: int) -> None:
    """Route a step fused and plain. Raises AssertionError where they differ."""
    logits_TE = random_logits(segment_T, experts)
    experts_TA, weights_TA, count_T, tail_T = route_fused(logits_TE, segment_T)
    expected_TA, expected_weights_TA, expected_count_T, expected_tail_T = route_plain(logits_TE, segment_T)
    torch.testing.assert_close(experts_TA.long(), expected_TA, rtol=0, atol=0)
    torch.testing.assert_close(weights_TA, expected_weights_TA)
    assert torch.equal(count_T.long(), expected_count_T)
    assert tail_T is not None and torch.equal(tail_T.bool(), expected_tail_T)


def random_mixture(tokens: int, experts: int, device: torch.device | str) -> MixtureRule:
    """A random step and two mixtures, with the sizes that `gmm` has by default."""
    shape = 2, experts, 16
    return MixtureRule(
        _random((tokens, 32), device),
        _random(shape, device).flatten(1).log_softmax(dim=-1).view(shape),
        *_random((2, *shape, 32), device),
    )


def mixture_plain(rule: MixtureRule) -> tuple[Tensor, Tensor]:
    """Do the same as `mixture_router`, in plain PyTorch."""
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
    """Random numbers that are the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)
