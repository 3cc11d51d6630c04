"""The search for block sizes with made-up times, and vLLM's reading of its tables."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from triton.runtime.errors import OutOfResources
from vllm.model_executor.layers.fused_moe import fused_moe, get_config
from vllm.model_executor.layers.fused_moe.experts import triton_moe

from prismoe.benchmarks.kernels import tune
from prismoe.benchmarks.kernels.bench import loop_over_experts, routing
from prismoe.benchmarks.kernels.bench_gpu import vllm_triton_experts
from prismoe.benchmarks.kernels.tune import Config, Widths
from tests.kernels.triton_on_cpu import triton_on_cpu  # noqa: F401

WIDTHS = Widths(hidden=24, width=32, is_gated=True)


def test_the_fastest_config_that_fits_is_found() -> None:
    def seconds(run: Callable[[], object]) -> float:
        run()
        config = get_config()
        assert config is not None
        if config["BLOCK_SIZE_N"] == 256:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return abs(config["BLOCK_SIZE_M"] - 40) + config["num_warps"] - config["BLOCK_SIZE_N"]

    run = Mock()
    configs = tune.candidates(64, 4, WIDTHS)
    best = tune.fastest(run, configs, seconds)
    assert (best["BLOCK_SIZE_M"], best["BLOCK_SIZE_N"], best["num_warps"]) == (32, 128, 4)
    assert run.call_count == len(configs) == 1 + 192
    assert get_config() is None


def test_blocks_of_many_more_rows_than_tokens_are_left_out() -> None:
    assert {config["BLOCK_SIZE_M"] for config in tune.candidates(1, 4, WIDTHS)} == {16}


def test_vllms_default_stays_if_nothing_is_faster() -> None:
    default = fused_moe.get_default_config(8, 4, 32, 24, 4, None)
    assert tune.fastest(Mock(), tune.candidates(8, 4, WIDTHS), lambda run: 1.0) == default


def test_vllm_reads_the_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fused_moe, "get_device_name_as_file_name", lambda: "NVIDIA_H200_NVL")
    monkeypatch.setattr(tune, "TOKENS", (1, 64))
    monkeypatch.setattr(tune, "MODELS", {"small": WIDTHS})
    monkeypatch.setattr(tune, "do_bench_cudagraph", lambda run: 1.0)
    monkeypatch.setattr(tune, "tuned", partial(tune.tuned, device="cpu"))
    monkeypatch.setattr("sys.argv", ["tune", "--tensor-parallel-size", "2", str(tmp_path / "tables")])
    tune.main()
    names = {f"E={experts},N=16,device_name=NVIDIA_H200.json" for experts in (4, 8)}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == names
    monkeypatch.setenv("VLLM_TUNED_CONFIG_FOLDER", str(tmp_path / "tables"))
    fused_moe.get_moe_configs.cache_clear()
    table = fused_moe.get_moe_configs(4, 16, None)
    fused_moe.get_moe_configs.cache_clear()
    assert table == {tokens: fused_moe.get_default_config(tokens, 4, 16, 24, 4, None) for tokens in (1, 64)}


@pytest.mark.usefixtures("triton_on_cpu")
def test_the_kernels_run_with_the_candidate_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    w13, w2 = torch.randn(4, 64, 24) / 5, torch.randn(4, 24, 32) / 5
    hidden_TD = torch.randn(20, 24)
    weights_TA, experts_TA = routing(20, is_mixed=True)
    invoke = Mock(wraps=fused_moe.invoke_fused_moe_triton_kernel)
    monkeypatch.setattr(triton_moe, "invoke_fused_moe_triton_kernel", invoke)
    config: Config = {**tune.candidates(20, 4, WIDTHS)[-1], "BLOCK_SIZE_N": 16}
    results = []

    def once(run: Callable[[], object]) -> float:
        results.append(run())
        return 1.0

    kernels = vllm_triton_experts(w13, w2, leaves_out=True)
    tune.fastest(partial(kernels, hidden_TD, weights_TA, experts_TA), [config], once)
    assert [call.args[11] for call in invoke.call_args_list] == [config, config]
    expected = loop_over_experts(hidden_TD.double(), weights_TA, experts_TA, w13.double(), w2.double())
    torch.testing.assert_close(results, [expected.float()], atol=1e-5, rtol=1e-5)
