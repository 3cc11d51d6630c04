"""The routing op as the compiler and the engine see it."""

from typing import Any

import pytest
import torch

import prismoe.model_plugins.router  # noqa: F401  (registers the op)
from prismoe.kernels.expert_load import MODALITIES
from prismoe.model_plugins.routing.ltdr import LTDR
from prismoe.model_plugins.routing.policy import RoutingPolicy
from prismoe.model_plugins.routing.topk import TopK
from prismoe.server.expert_load import MODALITIES as SERVER_MODALITIES
from tests.kernels.test_routing import random_logits

POLICIES = [TopK(top_k=2, norm_topk_prob=True), LTDR(top_k=2, norm_topk_prob=True)]


def arguments(policy: RoutingPolicy, segments: list[int]) -> tuple[Any, ...]:
    load_MC = torch.zeros(2, 6, dtype=torch.int64)
    asked = torch.zeros(len(segments), 2, dtype=torch.int32)
    parameters: list[torch.Tensor] = []
    return (
        torch.empty(5, 8),
        random_logits(5, 4),
        torch.tensor(segments),
        asked,
        load_MC,
        parameters,
        policy.model_dump_json(),
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_the_op_is_what_it_tells_the_compiler(policy: RoutingPolicy) -> None:
    torch.library.opcheck(
        torch.ops.prismoe.route.default,
        arguments(policy, [-1, 0, 0, 0, 1, -2]),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_of_padding_counts_nothing(policy: RoutingPolicy) -> None:
    inputs = arguments(policy, [-2] * 9)
    weights_TA, experts_TA = torch.ops.prismoe.route(*inputs)
    assert not inputs[4].any()
    assert experts_TA.min() >= 0  # an id of -1 would corrupt memory in vLLM's CPU kernel
    torch.testing.assert_close(weights_TA.sum(dim=1), torch.ones(5))


def test_more_tokens_than_the_buffer_holds_stop_the_step() -> None:
    with pytest.raises(AssertionError, match="more tokens"):
        torch.ops.prismoe.route(*arguments(POLICIES[0], [-1, -1]))


def test_server_and_counters_mean_the_same_modalities() -> None:
    assert SERVER_MODALITIES == MODALITIES
