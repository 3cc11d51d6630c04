"""The router of CUDA beside that of CPU, by Triton's interpreter."""

from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from prismoe.kernels import fused_check
from prismoe.kernels.expert_load import empty_load
from prismoe.model_plugins import gpu_router, routed_model
from prismoe.model_plugins.gpu_router import FusedRouter, fused_routing_works
from prismoe.model_plugins.router import PolicyRouter
from tests.model_plugins.routing_steps import CASES, make, random_step, token_segments


@pytest.fixture(autouse=True)
def _interpret_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    fused_routing_works.cache_clear()


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_it_decides_and_counts_as_the_plain_router(settings: dict[str, Any]) -> None:
    policy, segments = make(settings), [-1, 0, 0, 0, 1, 1, -1, -2]
    step = random_step(policy, segments, 5)
    parameters = nn.ParameterDict(
        {name: nn.Parameter(values, requires_grad=False) for name, values in step.parameters.items()}
    )
    plain, fused = (
        router(policy, 5, token_segments(segments), empty_load(5), parameters)
        for router in (PolicyRouter, FusedRouter)
    )
    for _ in range(2):
        weights_TA, experts_TA, _ = fused.decide(step.hidden_TD, step.logits_TE)
        expected_weights_TA, expected_TA, _ = plain.decide(step.hidden_TD, step.logits_TE)
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
    monkeypatch.setattr(gpu_router.logger, "propagate", True)
    assert routed_model.router_class() is PolicyRouter
    assert "plain PyTorch routes" in caplog.text
