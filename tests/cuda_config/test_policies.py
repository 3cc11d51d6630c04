"""Runs each policy on fake GPU tensors, which have shapes and devices but no data.

So nothing may wait for the GPU: reading a value, a shape that depends on data, or a CPU tensor among the
GPU's raises an error.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from prismoe.kernels.routing import PADDING, TEXT
from prismoe.model_plugins.moe_layer.router import trial_inputs
from prismoe.model_plugins.routing.policy import RouterInputs, Routing
from tests.model_plugins.routing.routing_steps import CASES, make

EXPERTS = 6
FAKED = FakeTensorMode()
"""One mode for all tests, because policies keep constants."""
STEPS = {"one token": [TEXT], "two images": [TEXT, *[0] * 7, TEXT, *[1] * 9, PADDING]}


def on_gpu(value: Any) -> Any:
    """The same tensors on a GPU without data. Use it within `FAKED`."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="cuda")
    return {name: on_gpu(part) for name, part in value.items()} if isinstance(value, dict) else value


def routed(settings: dict[str, Any], segments: list[int]) -> Routing:
    policy = make(settings)
    step = trial_inputs(policy, EXPERTS, segments)
    with FAKED:
        routing = policy.route(RouterInputs(*map(on_gpu, step)))
        assert routing.count_T.device.type == routing.tail_T.device.type == "cuda"
    return routing


@pytest.mark.parametrize("segments", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_nothing_waits_for_the_gpu(settings: dict[str, Any], segments: list[int]) -> None:
    routing = routed(settings, segments)
    assert routing.experts_TA.shape == routing.weights_TA.shape
    assert len(routing.experts_TA) == len(segments)
    assert routing.experts_TA.device.type == routing.weights_TA.device.type == "cuda"


def test_a_policy_that_reads_a_value_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CASES["topk"]
    policy_class = type(make(settings))
    route = policy_class.route

    def waits(policy: Any, step: RouterInputs) -> Routing:
        assert step.logits_TE.sum().item() != 0
        return route(policy, step)

    monkeypatch.setattr(policy_class, "route", waits)
    with pytest.raises(DataDependentOutputException):
        routed(settings, [TEXT])
