"""Settings that would make routing wrong stop the start with a message."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import SchedulerConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.vllm_seams.engine.scheduler import (
    WholeImageAsyncScheduler,
    WholeImageScheduler,
    WholeRequestAsyncScheduler,
    WholeRequestScheduler,
)
from prismoe.model_plugins.worker import engine_checks
from prismoe.model_plugins.worker.engine_checks import check_engine, check_request_engine
from prismoe.model_plugins.worker.engine_options import ROUTED_WORKER, engine_options
from tests.model_plugins.engine import PHI

CPU_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"


def config(image_limit: int = 1, scheduler: Mapping[str, Any] | None = None, **changes: Any) -> Any:
    settings = {
        "pipeline_parallel_size": 1,
        "enable_expert_parallel": False,
        "use_ubatching": False,
        "use_sequence_parallel_moe": False,
        "lora_config": None,
        "speculative_config": None,
        "prefill_context_parallel_size": 1,
        "kv_transfer_config": None,
        "worker_cls": ROUTED_WORKER,
        "enable_prompt_embeds": False,
        "enable_prefix_caching": True,
        "is_hybrid": False,
        "max_model_len": 512,
    } | changes
    namespace = SimpleNamespace(**settings)
    namespace.multimodal_config = SimpleNamespace(get_limit_per_prompt=lambda modality: image_limit)
    steps = {"max_num_batched_tokens": 128, "max_num_seqs": 8} | dict(scheduler or {})
    return SimpleNamespace(
        parallel_config=namespace,
        speculative_config=namespace.speculative_config,
        lora_config=namespace.lora_config,
        kv_transfer_config=namespace.kv_transfer_config,
        model_config=namespace,
        scheduler_config=SchedulerConfig(max_model_len=512, is_encoder_decoder=False, **steps),
        cache_config=namespace,
    )


class OwnScheduler(Scheduler):
    """An operator's own scheduler."""


class OwnWholeImageScheduler(WholeImageScheduler):
    """An operator's own scheduler that keeps images whole."""


@pytest.mark.parametrize(
    ("needs_whole_images", "on_cpu", "options", "chosen"),
    [
        (False, True, {}, Scheduler),
        (False, False, {"async_scheduling": True}, AsyncScheduler),
        (True, True, {}, WholeImageScheduler),
        (True, True, {"async_scheduling": True}, WholeImageScheduler),  # a CPU never does
        (True, False, {}, WholeImageAsyncScheduler),
        (True, False, {"async_scheduling": True}, WholeImageAsyncScheduler),
        (True, False, {"async_scheduling": False}, WholeImageScheduler),
        (True, False, {"scheduler_cls": OwnWholeImageScheduler}, OwnWholeImageScheduler),
        (False, True, {"scheduler_cls": f"{__name__}.OwnScheduler"}, OwnScheduler),
    ],
)
def test_the_scheduler_that_is_used(
    needs_whole_images: bool,
    on_cpu: bool,
    options: dict[str, Any],
    chosen: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_checks, "current_platform", SimpleNamespace(is_cpu=lambda: on_cpu))
    settings = config(scheduler=options)
    check_engine(settings, needs_whole_images, tokens_per_image=64)
    assert settings.scheduler_config.get_scheduler_cls() is chosen


@pytest.mark.parametrize(
    ("on_cpu", "chosen"), [(True, WholeRequestScheduler), (False, WholeRequestAsyncScheduler)]
)
def test_the_scheduler_for_whole_requests(
    on_cpu: bool, chosen: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_checks, "current_platform", SimpleNamespace(is_cpu=lambda: on_cpu))
    settings = config(scheduler={"max_num_batched_tokens": 519})
    check_engine(settings, True, tokens_per_image=64, needs_whole_requests=True)
    assert settings.scheduler_config.get_scheduler_cls() is chosen


@pytest.mark.parametrize(
    ("scheduler", "advice"),
    [
        ({"max_num_batched_tokens": 518}, "--max-num-batched-tokens 519 or more, with --max-num-seqs 8"),
        (
            {"max_num_batched_tokens": 519, "long_prefill_token_threshold": 511},
            "a prompt may be 512 tokens: use --long-prefill-token-threshold 512",
        ),
        (
            {"max_num_batched_tokens": 519, "scheduler_cls": OwnWholeImageScheduler},
            "leave --scheduler-cls out",
        ),
    ],
)
def test_settings_that_would_split_a_requests_images_are_refused(
    scheduler: dict[str, Any], advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        check_engine(config(scheduler=scheduler), True, tokens_per_image=64, needs_whole_requests=True)


@pytest.mark.parametrize(
    "steps",
    [
        {"max_num_batched_tokens": 71},
        {"max_num_scheduled_tokens": 71},
        {"max_num_batched_tokens": 66, "max_num_active_seqs": 3},
        {"max_num_batched_tokens": 64, "max_num_seqs": 1},
        {"long_prefill_token_threshold": 64},
    ],
)
def test_the_smallest_steps_that_are_allowed(steps: dict[str, int]) -> None:
    check_engine(config(scheduler=steps), needs_whole_images=True, tokens_per_image=64)
    smaller = config(scheduler={name: size - (size >= 64) for name, size in steps.items()})
    with pytest.raises(ValueError, match="one step"):
        check_engine(smaller, needs_whole_images=True, tokens_per_image=64)


def test_topk_runs_in_steps_that_cannot_hold_an_image() -> None:
    steps = {"max_num_batched_tokens": 8, "long_prefill_token_threshold": 2}
    check_engine(config(scheduler=steps), needs_whole_images=False, tokens_per_image=64)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (config(pipeline_parallel_size=2), "--pipeline-parallel-size 1"),
        (config(enable_expert_parallel=True), "--enable-expert-parallel"),
        (config(speculative_config=object()), "--speculative-config"),
        (config(image_limit=0), "--limit-mm-per-prompt"),
        (config(use_ubatching=True), "--enable-dbo"),
        (config(use_sequence_parallel_moe=True), "--enable-expert-parallel"),
        (config(lora_config=object()), "--enable-lora"),
        (config(kv_transfer_config=object()), "--kv-transfer-config"),
        (config(prefill_context_parallel_size=2), "--prefill-context-parallel-size 1"),
        (config(is_hybrid=True), "--no-enable-prefix-caching"),
        (
            config(scheduler={"max_num_batched_tokens": 70}),
            "--max-num-batched-tokens 71 or more, with --max-num-seqs 8",
        ),
        (config(scheduler={"max_num_scheduled_tokens": 63}), "--max-num-scheduled-tokens 71 or more"),
        (config(scheduler={"long_prefill_token_threshold": 63}), "--long-prefill-token-threshold 64"),
        (config(scheduler={"scheduler_cls": OwnScheduler}), "leave --scheduler-cls out"),
    ],
)
def test_settings_that_would_route_wrongly_are_refused(settings: Any, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        check_engine(settings, needs_whole_images=True, tokens_per_image=64)


@pytest.mark.parametrize(
    ("steps", "advice"),
    [
        (
            {
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": 512,
                "max_num_scheduled_tokens": 511,
            },
            "--max-num-scheduled-tokens 512 or more",
        ),
        (
            {"disable_chunked_mm_input": True, "max_num_batched_tokens": 63},
            "--max-num-batched-tokens 64 or more, or leave --disable-chunked-mm-input out",
        ),
        (
            {"max_num_batched_tokens": 70, "scheduler_cls": OwnWholeImageScheduler},
            "--max-num-batched-tokens 71",
        ),
        ({"scheduler_cls": "no.such.Scheduler"}, "--scheduler-cls no.such.Scheduler can't be imported"),
        ({"scheduler_cls": f"{__name__}.NoSuch"}, "can't be imported"),
        ({"scheduler_cls": "NoModule"}, "can't be imported"),
    ],
)
def test_settings_that_would_block_a_request_are_refused_under_any_policy(
    steps: dict[str, Any], advice: str
) -> None:
    with pytest.raises(ValueError, match=advice):
        check_engine(config(scheduler=steps), needs_whole_images=False, tokens_per_image=64)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (config(kv_transfer_config=object()), "--kv-transfer-config"),
        (config(enable_prompt_embeds=True), "--enable-prompt-embeds"),
    ],
)
def test_settings_that_would_hide_a_request_are_refused(settings: Any, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        check_request_engine(settings)


def test_a_checkpoint_gets_prismoes_worker_by_default() -> None:
    parallel = EngineArgs(model=str(PHI)).create_engine_config().parallel_config
    assert parallel.worker_cls == ROUTED_WORKER


@pytest.mark.parametrize(
    ("routing", "caching"),
    [
        ({"policy": "topk"}, True),
        ({"policy": "ltdr"}, True),
        ({"policy": "ltdr", "mean_over": "request"}, False),
        ({"policy": "task", "top_k": 1, "experts": [0, 1, 2, 3]}, False),
    ],
)
def test_prefix_caching_is_off_if_a_policy_decides_by_the_request(
    routing: dict[str, Any], caching: bool
) -> None:
    arguments = EngineArgs(model=str(PHI), max_num_batched_tokens=4096, **engine_options(routing))
    assert arguments.create_engine_config().cache_config.enable_prefix_caching == caching


@pytest.mark.parametrize(
    ("routing", "options", "advice"),
    [
        ({"policy": "ltdr", "tail_experts": 9}, {}, "tail_experts is 9: give a number from"),
        ({"policy": "ltdr"}, {"max_num_batched_tokens": 15}, "--max-num-batched-tokens 30 or more"),
        ({"policy": "topk"}, {"enable_lora": True}, "--enable-lora"),
        ({"policy": "topk"}, {"worker_cls": CPU_WORKER}, f"leave --worker-cls {CPU_WORKER} out"),
        ({"policy": "cluster"}, {}, "lacks the tensor model.layers"),
    ],
)
def test_vllm_refuses_before_it_starts_an_engine(
    routing: dict[str, Any], options: dict[str, Any], advice: str
) -> None:
    arguments = EngineArgs(model=str(PHI), **engine_options(routing) | options)
    with pytest.raises(ValueError, match=advice):
        arguments.create_engine_config()


PRISMOJI = bundled_checkpoint()
"""Its config asks for `ltdr`."""


@pytest.mark.parametrize(
    ("checkpoint", "routing", "scheduler"),
    [
        (PHI, None, Scheduler),
        (PHI, {"policy": "ltdr"}, WholeImageScheduler),
        (PHI, {"policy": "topk", "layers": {"2": {"policy": "ltdr"}}}, WholeImageScheduler),
        (PHI, {"policy": "ltdr", "layers": {"2": {"mean_over": "request"}}}, WholeRequestScheduler),
        (PRISMOJI, None, WholeImageScheduler),
        (PRISMOJI, {"policy": "topk"}, Scheduler),
        (PRISMOJI, {"policy": "ltdr", "threshold": 0.04}, Scheduler),
    ],
)
def test_the_routing_in_force_selects_the_scheduler(
    checkpoint: Path, routing: dict[str, Any] | None, scheduler: type
) -> None:
    arguments = EngineArgs(model=str(checkpoint), max_num_batched_tokens=4096, **engine_options(routing))
    engine = arguments.create_engine_config()
    assert engine.scheduler_config.get_scheduler_cls() is scheduler
