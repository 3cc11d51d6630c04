"""The router on CUDA: a policy's fused rule decides in one launch, and another one counts."""

from collections.abc import Sequence
from functools import cache, partial

import torch
from torch import Tensor
from vllm.platforms import current_platform

from prismoe.kernels.expert_load import count_expert_load, empty_load
from prismoe.kernels.fused_rule import FusedRule, MixtureRule
from prismoe.kernels.routing import PADDING, TEXT
from prismoe.kernels.triton.expert_load import count_expert_load_fused
from prismoe.kernels.triton.mixture import mixture_router
from prismoe.kernels.triton.router import fused_router
from prismoe.model_plugins.moe_layer.kernel_check import kernel_works
from prismoe.model_plugins.moe_layer.router import PolicyRouter
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy
from prismoe.model_plugins.routing.request_policy import RequestPolicy

CHECKED_IMAGES = ((40, 36), (576, 700))
"""The tokens of the two images of each step that the check at the start routes."""


class FusedRouter(PolicyRouter):
    """Decides and counts as `PolicyRouter` does, with launches instead of dozens of small operations."""

    def decide(self, hidden_TD: Tensor, logits_TE: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Route and count the running step, as `PolicyRouter.decide` does."""
        step = self.inputs(hidden_TD, logits_TE)
        experts_TA, weights_TA, count_T, tail_T, confidence = fused_routing(self.policy, step)
        count_expert_load_fused(self._load_MC, experts_TA, count_T, tail_T, step.segment_T, confidence)
        return weights_TA.contiguous(), experts_TA, self.policy.uses_all_slots


def fused_routing(policy: RoutingPolicy, step: RouterInputs) -> Routing:
    """What `policy.route` decides, with int32 experts, by a kernel if the policy has a fused rule."""
    match policy.fused_rule(step):
        case FusedRule() as rule:
            return Routing(*fused_router(rule, step.segment_T), rule.confidence)
        case MixtureRule() as rule:
            return Routing.of_equal_counts(*mixture_router(*rule), None)
        case None:
            routing = policy.route(step)
            return routing._replace(experts_TA=routing.experts_TA.int().contiguous())


def fused_routing_works(policy: RoutingPolicy, num_experts: int) -> bool:
    """Whether the kernels do on this GPU what the policy does in plain PyTorch."""
    return _works(type(policy), policy.model_dump_json(), num_experts, current_platform.device_type)


@cache  # layers often have the same policy
def _works(policy_class: type[RoutingPolicy], settings: str, num_experts: int, device: str) -> bool:
    policy = policy_class.model_validate_json(settings)
    return kernel_works(
        partial(check_fused_routing, policy, num_experts, device),
        f"fused routing by {policy.policy}",
        "plain PyTorch routes, which is slower",
    )


def check_fused_routing(policy: RoutingPolicy, num_experts: int, device: str) -> None:
    """Route and count a small and a large step both ways. Raises AssertionError where they differ.

    Rounding may decide otherwise for one token in a hundred.
    """
    with torch.device(device):  # a model is loaded under a default device and type of its own
        for first, second in CHECKED_IMAGES:
            _check_step(policy, num_experts, [TEXT] * 20 + [0] * first + [1] * second + [PADDING] * 4)


def _check_step(policy: RoutingPolicy, num_experts: int, segments: Sequence[int]) -> None:
    step = _random_step(policy, num_experts, segments)
    routing, expected = fused_routing(policy, step), policy.route(step)
    differs_T = (routing.experts_TA != expected.experts_TA).any(dim=1)
    differs_T |= (routing.count_T != expected.count_T) | (routing.tail_T != expected.tail_T)
    assert int(differs_T.sum()) <= max(1, len(segments) // 100), "experts differ"
    weights_TA, expected_TA = routing.weights_TA[~differs_T], expected.weights_TA[~differs_T]
    torch.testing.assert_close(weights_TA, expected_TA, rtol=1e-3, atol=1e-3)  # `gmm`'s are of large sums
    load_MC, expected_load_MC = empty_load(num_experts), empty_load(num_experts)
    experts_TA, _, count_T, tail_T, confidence = routing
    counted = experts_TA, count_T, tail_T, step.segment_T, confidence
    count_expert_load_fused(load_MC, *counted)
    count_expert_load(expected_load_MC, *counted)
    # Numbers of tokens are equal; entropy and RPV are sums of rounded parts.
    torch.testing.assert_close(load_MC.double(), expected_load_MC.double(), rtol=1e-5, atol=0.1)


def _random_step(
    policy: RoutingPolicy, num_experts: int, segments: Sequence[int], hidden_size: int = 64
) -> RouterInputs:
    """The same on every device, on the default one."""
    generator = torch.Generator(device="cpu").manual_seed(0)

    def values(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
        return drawn.to(torch.get_default_device())

    segment_T = torch.tensor(segments)
    by_request = isinstance(policy, RequestPolicy)
    return RouterInputs(
        hidden_TD=values(len(segments), hidden_size),
        logits_TE=values(len(segments), num_experts if by_request else policy.gate_rows(num_experts)),
        segment_T=segment_T,
        asked_T2=values(len(segments), 2).abs().int() * (segment_T >= 0)[:, None],
        parameters={
            name: values(*shape).abs().add(0.5)  # a temperature must be positive
            for name, shape in policy.parameters(hidden_size, num_experts).items()
        },
        num_experts=num_experts,
    )
