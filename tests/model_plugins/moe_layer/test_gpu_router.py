"""CUDA's router next to that of CPU, in Triton's interpreter."""

import logging
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.utils.torch_utils import set_default_torch_dtype

from prismoe.kernels.triton import layer_rows as triton_layer_rows
from prismoe.kernels.triton import router as triton_router
from prismoe.kernels.triton.layer_rows import write_rows_fused
from prismoe.kernels.triton.mixture import mixture_router
from prismoe.kernels.triton.router import fused_router
from prismoe.model_plugins.moe_layer import gpu_router, kernel_check, model_routing
from prismoe.model_plugins.moe_layer.gpu_router import FusedRouter
from prismoe.model_plugins.moe_layer.load_counter import LoadCounter
from prismoe.model_plugins.moe_layer.router import PolicyRouter
from prismoe.model_plugins.routing.policy import RoutingPolicy
from tests.model_plugins.routing.routing_steps import CASES, make, random_step, routing_step
from tests.triton_interpreter import interpret_triton  # noqa: F401


class Operations(TorchDispatchMode):
    """Records PyTorch's operations that launch a kernel, and not those that read or allocate a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not operation.is_view and "empty" not in operation.__name__:
            self.names.append(operation.__name__)
        return operation(*args, **(kwargs or {}))


def router_and_step(
    router: type[PolicyRouter], settings: dict[str, Any]
) -> tuple[PolicyRouter, torch.Tensor, torch.Tensor]:
    """A router, and the hidden states and logits of a step with two images, text and padding."""
    policy, segments = make(settings), [-1, 0, 0, 0, 1, 1, -1, -2]
    step = random_step(policy, segments, 5)
    parameters = nn.ParameterDict(
        {name: nn.Parameter(values, requires_grad=False) for name, values in step.parameters.items()}
    )
    routed = routing_step(policy, 5, segments)
    routed._write_rows = write_rows_fused
    return router(policy, 5, routed, 0, parameters), step.hidden_TD, step.logits_TE


@pytest.mark.parametrize("policy", ["topk", "ltdr", "entropy", "two thresholds", "fine experts", "task"])
def test_a_decision_is_two_launches(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    router, *step = router_and_step(FusedRouter, CASES[policy])
    launches = []
    for kernel in (triton_router._route, triton_layer_rows._write):
        monkeypatch.setattr(kernel, "run", lambda *args, **kwargs: launches.append(args))
    with Operations() as operations:
        router.decide(*step)
    assert operations.names == []
    assert len(launches) == 2


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_it_decides_and_counts_like_the_plain_router(settings: dict[str, Any]) -> None:
    plain, *step = router_and_step(PolicyRouter, settings)
    fused, *_ = router_and_step(FusedRouter, settings)
    weights_TA, experts_TA, _ = fused.decide(*step)
    expected_weights_TA, expected_TA, _ = plain.decide(*step)
    assert torch.equal(experts_TA, expected_TA)
    torch.testing.assert_close(weights_TA, expected_weights_TA)
    assert weights_TA.is_contiguous()
    assert experts_TA.is_contiguous()
    loads = []
    for router in (plain, fused):
        counter = LoadCounter(router._step)
        counter.add(router._step)
        loads.append(counter.load())
    for name, counts in loads[0].items():
        rounding = 1e-4 if name.startswith("routing") else 0
        np.testing.assert_allclose(loads[1][name], counts, atol=rounding, err_msg=name)
    assert sum(loads[1]["tokens"][0]) == 7


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    platform = Mock(device_type="cpu")
    platform.is_cuda.return_value = True
    for module in (model_routing, gpu_router):
        monkeypatch.setattr(module, "current_platform", platform)
    monkeypatch.setattr(kernel_check, "get_tp_group", lambda: Mock(world_size=1))
    monkeypatch.setattr(kernel_check.logger, "handlers", [caplog.handler])
    caplog.set_level(logging.WARNING, kernel_check.logger.name)
    gpu_router._works.cache_clear()
    monkeypatch.setattr(gpu_router, "CHECKED_IMAGES", [(9, 7), (40, 36)])  # the interpreter is slow


LTDR, GMM, TOP_ANY = (make(CASES[case]) for case in ("ltdr", "gmm", "top_any"))


@pytest.mark.slow
@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_every_policy_passes_its_start_check(settings: dict[str, Any]) -> None:
    """The default device and dtype can be different while a model is loaded."""
    with torch.device("meta"), set_default_torch_dtype(torch.bfloat16):
        assert model_routing.router_class(make(settings), 5) is FusedRouter


def test_cpu_routes_without_fused_kernels() -> None:
    assert model_routing.router_class(LTDR, 5) is PolicyRouter


@pytest.mark.usefixtures("on_cuda")
def test_an_operator_can_switch_off_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRISMOE_PLAIN_KERNELS", "1")
    assert model_routing.router_class(LTDR, 5) is PolicyRouter


def other_experts(*arguments: Any) -> Any:
    routing = fused_router(*arguments)
    return routing._replace(experts_TA=(routing.experts_TA + 1) % 5)


def no_tail(*arguments: Any) -> Any:
    routing = fused_router(*arguments)
    assert routing.tail_T is not None
    return routing._replace(tail_T=torch.zeros_like(routing.tail_T))


def other_weights(*arguments: Any) -> Any:
    routing = fused_router(*arguments)
    return routing._replace(weights_TA=routing.weights_TA * 1.01)


def other_experts_of_mixtures(*rule: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    experts_TK, weights_TK = mixture_router(*rule)
    return (experts_TK + 1) % 5, weights_TK


def broken(*arguments: Any) -> None:
    raise RuntimeError("no kernel image is available for execution on the device")


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    ("policy", "kernel", "fault"),
    [
        (LTDR, "fused_router", other_experts),
        (LTDR, "fused_router", other_weights),
        (LTDR, "fused_router", no_tail),
        (LTDR, "fused_router", broken),
        (GMM, "mixture_router", other_experts_of_mixtures),
    ],
)
def test_a_gpu_on_which_they_fail_routes_in_plain_pytorch(
    policy: RoutingPolicy,
    kernel: str,
    fault: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(gpu_router, kernel, fault)
    assert model_routing.router_class(policy, 5) is PolicyRouter
    assert f"fused routing by {policy.policy} does not work on this GPU" in caplog.text


@pytest.mark.usefixtures("on_cuda")
def test_a_policy_that_contradicts_its_fused_rule_routes_in_plain_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(LTDR), "route", lambda policy, step: make(CASES["topk of 1"]).route(step))
    assert model_routing.router_class(LTDR, 5) is PolicyRouter


@pytest.mark.slow
@pytest.mark.usefixtures("on_cuda")
def test_all_ranks_use_the_same_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check failed on another rank."""
    monkeypatch.setattr(kernel_check, "get_tp_group", lambda: Mock(world_size=2))
    monkeypatch.setattr(kernel_check, "all_reduce", lambda answer, operation, group: answer.fill_(1))
    assert model_routing.router_class(LTDR, 5) is PolicyRouter


@pytest.mark.usefixtures("on_cuda")
def test_a_broken_gpu_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_router, "fused_router", broken)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(RuntimeError, match="Start again with PRISMOE_PLAIN_KERNELS=1"):
        model_routing.router_class(LTDR, 5)


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    ("broken_rank", "sentence"),
    [
        (0, "broke its work on this GPU.*report this error: no kernel image"),
        (1, "broke its work on the GPU of another rank.*report that rank's error"),
    ],
)
def test_a_rank_with_a_broken_gpu_stops_all(
    monkeypatch: pytest.MonkeyPatch, broken_rank: int, sentence: str
) -> None:
    """It tells the other ranks before it stops, since they would wait for its answer forever."""
    asked: list[int] = []

    def all_reduce(answer: torch.Tensor, operation: Any, group: Any) -> None:
        asked.append(int(answer))
        answer.fill_(0)  # the worst result of all ranks

    if broken_rank == 0:
        monkeypatch.setattr(gpu_router, "fused_router", broken)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", broken)
    monkeypatch.setattr(kernel_check, "get_tp_group", lambda: Mock(world_size=2))
    monkeypatch.setattr(kernel_check, "all_reduce", all_reduce)
    with pytest.raises(RuntimeError, match=sentence):
        model_routing.router_class(LTDR, 5)
    assert asked == [2 * broken_rank]
