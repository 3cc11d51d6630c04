"""The router of CUDA beside that of CPU, by Triton's interpreter."""

from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from prismoe.kernels import fused_check, triton_expert_load, triton_router
from prismoe.kernels.expert_load import empty_load
from prismoe.model_plugins import kernel_check, routed_model
from prismoe.model_plugins.gpu_router import FusedRouter, fused_routing_works
from prismoe.model_plugins.router import PolicyRouter
from tests.model_plugins.routing_steps import CASES, make, random_step, token_segments


@pytest.fixture(autouse=True)
def _interpret_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    fused_routing_works.cache_clear()


class Operations(TorchDispatchMode):
    """PyTorch's operations that launch a kernel: those that neither look at a tensor nor allocate one."""

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
    """A router, and hidden states and logits of a step of two images, text and padding."""
    policy, segments = make(settings), [-1, 0, 0, 0, 1, 1, -1, -2]
    step = random_step(policy, segments, 5)
    parameters = nn.ParameterDict(
        {name: nn.Parameter(values, requires_grad=False) for name, values in step.parameters.items()}
    )
    tokens = token_segments(segments)
    tokens._is_on_cpu = False  # there it copies
    return router(policy, 5, tokens, empty_load(5), parameters), step.hidden_TD, step.logits_TE


@pytest.mark.parametrize("policy", ["topk", "ltdr", "entropy", "two thresholds", "fine experts", "task"])
def test_a_decision_is_two_launches(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    router, *step = router_and_step(FusedRouter, CASES[policy])
    launches = []
    for kernel in (triton_router._route, triton_expert_load._count):
        monkeypatch.setattr(kernel, "run", lambda *args, **kwargs: launches.append(args))
    with Operations() as operations:
        router.decide(*step)
    assert operations.names == []
    assert len(launches) == 2


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_it_decides_and_counts_as_the_plain_router(settings: dict[str, Any]) -> None:
    plain, *step = router_and_step(PolicyRouter, settings)
    fused, *_ = router_and_step(FusedRouter, settings)
    for _ in range(2):
        weights_TA, experts_TA, _ = fused.decide(*step)
        expected_weights_TA, expected_TA, _ = plain.decide(*step)
    assert torch.equal(experts_TA, expected_TA)
    torch.testing.assert_close(weights_TA, expected_weights_TA)
    assert weights_TA.is_contiguous()
    assert experts_TA.is_contiguous()
    for name, counts in plain.load()._asdict().items():
        rounding = 1e-4 if name.startswith("routing") else 0
        np.testing.assert_allclose(getattr(fused.load(), name), counts, atol=rounding, err_msg=name)
    assert sum(fused.load().tokens) == 14


def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = Mock(device_type="cpu")
    platform.is_cuda.return_value = True
    monkeypatch.setattr(routed_model, "current_platform", platform)


def test_cuda_routes_by_fused_kernels_and_cpu_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert routed_model.router_class() is PolicyRouter
    on_cuda(monkeypatch)
    assert routed_model.router_class() is FusedRouter


def one_expert_too_far(*arguments: Any) -> Any:
    routing = fused_router(*arguments)
    return routing._replace(experts_TA=routing.experts_TA + 1)


def one_token_too_many(load_MC: torch.Tensor, *arguments: Any) -> None:
    count(load_MC, *arguments)
    load_MC[1, 0] += 1


def another_expert(*rule: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    experts_TK, weights_TK = mixture_router(*rule)
    return (experts_TK + 1) % 4, weights_TK


def broken(*arguments: Any) -> None:
    raise RuntimeError("no kernel image is available for execution on the device")


mixture_router = fused_check.mixture_router
fused_router, count = fused_check.fused_router, fused_check.count_expert_load_fused


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        ("fused_router", one_expert_too_far),
        ("fused_router", broken),
        ("count_expert_load_fused", one_token_too_many),
        ("mixture_router", another_expert),
    ],
)
def test_a_gpu_on_which_they_fail_routes_in_plain_pytorch(
    kernel: str, fault: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_cuda(monkeypatch)
    monkeypatch.setattr(fused_check, kernel, fault)
    monkeypatch.setattr(kernel_check.logger, "propagate", True)
    assert routed_model.router_class() is PolicyRouter
    assert "plain PyTorch routes" in caplog.text
