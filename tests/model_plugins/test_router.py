"""The routing op as the compiler and the engine see it."""

from typing import Any

import pytest
import torch

import prismoe.model_plugins.router  # noqa: F401  (registers the op)
from prismoe.kernels.expert_load import MODALITIES
from prismoe.server.expert_load import MODALITIES as SERVER_MODALITIES
from tests.model_plugins.routing_steps import CASES, make, random_step

EVERY_POLICY = pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())


def arguments(settings: dict[str, Any], segments: list[int]) -> tuple[Any, ...]:
    """What the op gets for a step of 5 tokens, with buffers that hold `segments`."""
    policy = make(settings)
    step = random_step(policy, segments[:5], num_experts=5)
    load_MC = torch.zeros(2, 7, dtype=torch.int64)
    asked = torch.zeros(len(segments), 2, dtype=torch.int32)
    parameters = list(step.parameters.values())
    return (
        step.hidden_TD,
        step.logits_TE,
        torch.tensor(segments),
        asked,
        load_MC,
        parameters,
        policy.model_dump_json(),
    )


@EVERY_POLICY
def test_the_op_is_what_it_tells_the_compiler(settings: dict[str, Any]) -> None:
    torch.library.opcheck(
        torch.ops.prismoe.route.default,
        arguments(settings, [-1, 0, 0, 0, 1, -2]),
        test_utils=("test_schema", "test_faketensor"),
    )


@EVERY_POLICY
def test_the_kernels_get_rows_side_by_side(settings: dict[str, Any]) -> None:
    """vLLM's CPU kernel takes no strides: it would read another token's weights."""
    weights_TA, experts_TA = torch.ops.prismoe.route(*arguments(settings, [-1, 0, 0, 0, 1, -2]))
    assert weights_TA.is_contiguous()
    assert experts_TA.is_contiguous()


@EVERY_POLICY
def test_a_step_of_padding_counts_nothing(settings: dict[str, Any]) -> None:
    inputs = arguments(settings, [-2] * 9)
    weights_TA, experts_TA = torch.ops.prismoe.route(*inputs)
    assert not inputs[4].any()
    assert experts_TA.min() >= 0  # an id of -1 would corrupt memory in vLLM's CPU kernel
    assert weights_TA.isfinite().all()


def test_more_tokens_than_the_buffer_holds_stop_the_step() -> None:
    with pytest.raises(AssertionError, match="more tokens"):
        inputs = arguments(CASES["topk"], [-1] * 5)
        torch.ops.prismoe.route(*inputs[:2], torch.tensor([-1, -1]), *inputs[3:])


def test_server_and_counters_mean_the_same_modalities() -> None:
    assert SERVER_MODALITIES == MODALITIES
