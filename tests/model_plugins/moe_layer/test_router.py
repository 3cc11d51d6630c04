"""The router as the compiler and the engine see it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prismoe.kernels.expert_load import LayerLoad, empty_load
from prismoe.model_plugins.moe_layer.router import PolicyRouter
from tests.model_plugins.routing.routing_steps import CASES, make, random_step, token_segments

EVERY_POLICY = pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
MIXED = [-1, 0, 0, 0, 1, -2]


def router_and_step(settings: dict[str, Any], segments: list[int]) -> tuple[PolicyRouter, Tensor, Tensor]:
    """A router whose buffers say `segments`, and hidden states and logits of a step of 5 tokens."""
    policy = make(settings)
    step = random_step(policy, segments[:5], num_experts=5)
    parameters = nn.ParameterDict(
        {name: nn.Parameter(values, requires_grad=False) for name, values in step.parameters.items()}
    )
    load_MC = empty_load(5)
    router = PolicyRouter(policy, 5, token_segments(segments), load_MC, parameters)
    return router, step.hidden_TD, step.logits_TE


@pytest.mark.slow
@EVERY_POLICY
@pytest.mark.parametrize("segments", [MIXED, [-1] * 5], ids=["mixed", "text"])
def test_compiled_it_decides_and_counts_the_same(settings: dict[str, Any], segments: list[int]) -> None:
    router, *step = router_and_step(settings, segments)
    *expected, _ = router.decide(*step)
    expected_load = router.load()
    router.reset_load()
    torch._dynamo.reset()  # or it would count the cases before as recompilations
    compiled = torch.compile(router.decide, fullgraph=True, dynamic=True, backend="aot_eager")
    *actual, _ = compiled(*step)
    slots = expected[0].shape[1]  # eagerly, slots that no token uses may be left out
    for part, wanted in zip(actual, expected, strict=True):
        assert torch.equal(part[:, :slots], wanted)
    assert not actual[0][:, slots:].any()
    assert router.load() == expected_load
    assert sum(expected_load.tokens) == 5


@EVERY_POLICY
def test_the_kernels_get_rows_side_by_side(settings: dict[str, Any]) -> None:
    """vLLM's CPU kernel takes no strides: it would read another token's weights."""
    router, *step = router_and_step(settings, MIXED)
    weights_TA, experts_TA, _ = router.decide(*step)
    assert weights_TA.is_contiguous()
    assert experts_TA.is_contiguous()
    assert weights_TA.dtype == torch.float32
    assert experts_TA.dtype == torch.int32


@EVERY_POLICY
@pytest.mark.parametrize("segments", [MIXED, [-1] * 5], ids=["mixed", "text"])
def test_slots_said_to_be_used_have_a_weight(settings: dict[str, Any], segments: list[int]) -> None:
    """The experts do not look at the weights then."""
    router, *step = router_and_step(settings, segments)
    weights_TA, _, all_used = router.decide(*step)
    assert not all_used or (weights_TA > 0).all()


@EVERY_POLICY
def test_a_step_of_padding_counts_nothing(settings: dict[str, Any]) -> None:
    router, *step = router_and_step(settings, [-2] * 9)
    weights_TA, experts_TA, _ = router.decide(*step)
    assert router.load() == LayerLoad.read(empty_load(5), router.top_k)
    assert experts_TA.min() >= 0  # an id of -1 would corrupt memory in vLLM's CPU kernel
    assert weights_TA.isfinite().all()
