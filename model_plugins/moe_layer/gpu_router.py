"""The router on CUDA: one launch decides by a policy's fused rule."""

from collections.abc import Sequence
from functools import cache, partial

import torch
from vllm.platforms import current_platform

from prismoe.kernels.fused_rule import FusedRule, MixtureRule
from prismoe.kernels.routing import PADDING, TEXT
from prismoe.kernels.triton.mixture import mixture_router
from prismoe.kernels.triton.router import fused_router
from prismoe.model_plugins.moe_layer.kernel_check import kernel_works
from prismoe.model_plugins.moe_layer.router import PolicyRouter, trial_inputs
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy
from prismoe.model_plugins.routing.thresholds import threshold_tensors

CHECKED_IMAGES = ((40, 36), (576, 700))
"""The numbers of tokens of the two images in each step of the check at the start."""


class FusedRouter(PolicyRouter):
    """Decides as `PolicyRouter` does, in one launch instead of dozens of small operations."""

    def route(self, inputs: RouterInputs) -> Routing:
        """The policy's decision, by `fused_routing`."""
        return fused_routing(self.policy, inputs)


def fused_routing(policy: RoutingPolicy, step: RouterInputs) -> Routing:
    """The decision of `policy.route`, with int32 experts, by a kernel if the policy has a fused rule."""
    match policy.fused_rule(step):
        case FusedRule() as rule:
            return Routing(*fused_router(rule, step.segment_T), rule.confidence)
        case MixtureRule() as rule:
            return Routing.of_equal_counts(*mixture_router(*rule), None)
        case None:
            routing = policy.route(step)
            return routing._replace(experts_TA=routing.experts_TA.int().contiguous())


def fused_routing_works(policy: RoutingPolicy, num_experts: int) -> bool:
    """Whether the kernels give the same results on this GPU as the policy in plain PyTorch."""
    return _works(type(policy), policy.model_dump_json(), num_experts, current_platform.device_type)


@cache  # many layers have the same policy
def _works(policy_class: type[RoutingPolicy], settings: str, num_experts: int, device: str) -> bool:
    policy = policy_class.model_validate_json(settings)
    return kernel_works(
        partial(check_fused_routing, policy, num_experts, device),
        f"fused routing by {policy.policy}",
        "plain PyTorch routes, which is slower",
    )


def check_fused_routing(policy: RoutingPolicy, num_experts: int, device: str) -> None:
    """Route a small and a large step both ways. Raises AssertionError where they differ.

    Rounding may lead to another choice for one token in a hundred.
    """
    with torch.device(device):  # vLLM changes torch's defaults while it loads a model
        for first, second in CHECKED_IMAGES:
            _check_step(policy, num_experts, [TEXT] * 20 + [0] * first + [1] * second + [PADDING] * 4)


def _check_step(policy: RoutingPolicy, num_experts: int, segments: Sequence[int]) -> None:
    step = trial_inputs(policy, num_experts, segments)
    _compare(policy, step)
    if thresholds := threshold_tensors(policy, step.logits_TE.device):
        _compare(policy, step._replace(parameters={**step.parameters, **thresholds}))


def _compare(policy: RoutingPolicy, step: RouterInputs) -> None:
    routing, expected = fused_routing(policy, step), policy.route(step)
    differs_T = (routing.experts_TA != expected.experts_TA).any(dim=1)
    differs_T |= (routing.count_T != expected.count_T) | (routing.tail_T != expected.tail_T)
    assert int(differs_T.sum()) <= max(1, len(differs_T) // 100), "experts differ"
    weights_TA, expected_TA = routing.weights_TA[~differs_T], expected.weights_TA[~differs_T]
    torch.testing.assert_close(weights_TA, expected_TA, rtol=1e-3, atol=1e-3)  # `gmm` has large sums
