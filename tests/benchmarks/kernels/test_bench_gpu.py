"""The GPU benchmark without its clock, in Triton's interpreter."""

import time
from collections.abc import Callable

import pytest
import torch

from prismoe.benchmarks.kernels import bench_gpu
from prismoe.benchmarks.kernels.bench import EXPERTS, Row, loop_over_experts, routing
from prismoe.benchmarks.kernels.bench_gpu import (
    experts_on_gpu,
    mixture_on_gpu,
    router_on_gpu,
    vllm_triton_experts,
)
from tests.kernels.triton_on_cpu import triton_on_cpu  # noqa: F401


@pytest.mark.usefixtures("triton_on_cpu")
@pytest.mark.parametrize("leaves_out", [True, False])
@pytest.mark.parametrize("is_mixed", [True, False])
def test_vllms_experts_match_a_loop(is_mixed: bool, leaves_out: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    w13 = torch.randn(EXPERTS, 64, 24, generator=generator) / 5
    w2 = torch.randn(EXPERTS, 24, 32, generator=generator) / 5
    hidden_TD = torch.randn(20, 24, generator=generator)
    weights_TA, experts_TA = routing(20, is_mixed)
    expected = loop_over_experts(hidden_TD.double(), weights_TA, experts_TA, w13.double(), w2.double())
    actual = vllm_triton_experts(w13, w2, leaves_out)(hidden_TD, weights_TA, experts_TA)
    torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "DEVICE", "cpu")
    monkeypatch.setattr(bench_gpu, "do_bench", seconds_of_one_run)
    monkeypatch.setattr(bench_gpu, "do_bench_cudagraph", seconds_of_one_run)


def seconds_of_one_run(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.usefixtures("triton_on_cpu", "without_gpu")
@pytest.mark.parametrize(("dtype", "experts"), [(torch.float32, 4), (torch.float16, 9)])
def test_experts_are_checked_and_timed(dtype: torch.dtype, experts: int) -> None:
    row = experts_on_gpu(dtype, hidden=32, tokens=20, experts=experts, width=48)
    names = "fixed k = 2", "left out", "weight 0", "grouped", "grouped_mm", "loop", "floor"
    assert all(row[f"{name}, ms"] > 0 for name in names)


@pytest.mark.slow
@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("on_gpu", [router_on_gpu, mixture_on_gpu])
@pytest.mark.parametrize("tokens", [1, 64, 1300])
def test_routers_are_checked_and_timed(on_gpu: Callable[[int], Row], tokens: int) -> None:
    row = on_gpu(tokens)
    assert row["fused, µs"] > 0
    assert row["plain, µs"] > 0


@pytest.mark.usefixtures("triton_on_cpu", "without_gpu")
def test_wrong_experts_stop_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpu, "grouped_experts", lambda *arguments: arguments[-1].zero_())
    with pytest.raises(AssertionError, match="not close"):
        experts_on_gpu(torch.float32, hidden=32, tokens=20, width=48)
