"""The router in the compiler and in the engine."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prismoe.model_plugins.moe_layer.load_counter import LoadCounter
from prismoe.model_plugins.moe_layer.router import PolicyRouter
from prismoe.model_plugins.moe_layer.step import RoutingStep
from tests.model_plugins.routing.routing_steps import CASES, make, random_step, routing_step

EVERY_POLICY = pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
MIXED = [-1, 0, 0, 0, 1, -2]


def router_and_step(
    settings: dict[str, Any], segments: list[int]
) -> tuple[PolicyRouter, RoutingStep, Tensor, Tensor]:
    """A router, its step with `segments`, and the hidden states and logits of 5 tokens."""
    policy = make(settings)
    step = random_step(policy, segments[:5], num_experts=5)
    parameters = nn.ParameterDict(
        {name: nn.Parameter(values, requires_grad=False) for name, values in step.parameters.items()}
    )
    routed = routing_step(policy, 5, segments)
    return PolicyRouter(policy, 5, routed, 0, parameters), routed, step.hidden_TD, step.logits_TE


def counted(step: RoutingStep) -> Any:
    """The load according to the step's buffers."""
    counter = LoadCounter(step)
    counter.add(step)
    return counter.load()


@pytest.mark.slow
@EVERY_POLICY
@pytest.mark.parametrize("segments", [MIXED, [-1] * 5], ids=["mixed", "text"])
def test_compiled_it_decides_and_counts_the_same(settings: dict[str, Any], segments: list[int]) -> None:
    router, routed, *step = router_and_step(settings, segments)
    *expected, _ = router.decide(*step)
    expected_load = counted(routed)
    for buffer in (routed.experts, routed.weights, routed.logits):
        buffer.zero_()
    torch._dynamo.reset()  # otherwise it would count the cases before as recompilations
    compiled = torch.compile(router.decide, fullgraph=True, dynamic=True, backend="aot_eager")
    *actual, _ = compiled(*step)
    slots = expected[0].shape[1]  # eagerly, slots that no token uses may be left out
    for part, goal in zip(actual, expected, strict=True):
        assert torch.equal(part[:, :slots], goal)
    assert not actual[0][:, slots:].any()
    assert counted(routed) == expected_load
    assert sum(expected_load["tokens"][0]) == 5


@EVERY_POLICY
def test_the_kernels_get_contiguous_rows(settings: dict[str, Any]) -> None:
    """vLLM's CPU kernel ignores strides: it would read another token's weights."""
    router, _, *step = router_and_step(settings, MIXED)
    weights_TA, experts_TA, _ = router.decide(*step)
    assert weights_TA.is_contiguous()
    assert experts_TA.is_contiguous()
    assert weights_TA.dtype == torch.float32
    assert experts_TA.dtype == torch.int32


@EVERY_POLICY
@pytest.mark.parametrize("segments", [MIXED, [-1] * 5], ids=["mixed", "text"])
def test_slots_that_are_declared_used_have_a_weight(settings: dict[str, Any], segments: list[int]) -> None:
    """The experts do not check the weights then."""
    router, _, *step = router_and_step(settings, segments)
    weights_TA, _, all_used = router.decide(*step)
    assert not all_used or (weights_TA > 0).all()


@EVERY_POLICY
def test_a_step_of_padding_counts_nothing(settings: dict[str, Any]) -> None:
    router, routed, *step = router_and_step(settings, [-2] * 9)
    weights_TA, experts_TA, _ = router.decide(*step)
    load = counted(routed)
    assert load["tokens"] == load["scored_tokens"] == [[0, 0]]
    assert not any(sum(tokens) for tokens in load["expert_tokens"][0])
    assert experts_TA.min() >= 0  # an id of -1 would corrupt memory in vLLM's CPU kernel
    assert weights_TA.isfinite().all()
