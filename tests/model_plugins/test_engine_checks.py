"""Settings under which routing would be wrong stop the start with a sentence."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.sched.scheduler import Scheduler

from prismoe.model_plugins.engine_checks import check_engine, check_request_engine
from prismoe.model_plugins.engine_options import ROUTED_WORKER, engine_options
from prismoe.model_plugins.scheduler import WholeImageScheduler
from tests.model_plugins.engine import PHI


def config(scheduler: type = WholeImageScheduler, image_limit: int = 1, **changes: Any) -> Any:
    settings = {
        "pipeline_parallel_size": 1,
        "enable_expert_parallel": False,
        "use_ubatching": False,
        "use_sequence_parallel_moe": False,
        "lora_config": None,
        "speculative_config": None,
        "max_num_batched_tokens": 64,
        "max_num_scheduled_tokens": None,
        "long_prefill_token_threshold": 0,
        "prefill_context_parallel_size": 1,
        "kv_transfer_config": None,
        "worker_cls": ROUTED_WORKER,
        "enable_prompt_embeds": False,
        "enable_prefix_caching": True,
    } | changes
    namespace = SimpleNamespace(**settings)
    namespace.get_scheduler_cls = lambda: scheduler
    namespace.multimodal_config = SimpleNamespace(get_limit_per_prompt=lambda modality: image_limit)
    return SimpleNamespace(
        parallel_config=namespace,
        speculative_config=namespace.speculative_config,
        lora_config=namespace.lora_config,
        kv_transfer_config=namespace.kv_transfer_config,
        model_config=namespace,
        scheduler_config=namespace,
        cache_config=namespace,
    )


def test_the_settings_of_prismoe_serve_pass() -> None:
    check_engine(config(), needs_whole_images=True, tokens_per_image=64)


def test_topk_runs_with_vllms_own_scheduler() -> None:
    plain = config(scheduler=Scheduler, max_num_batched_tokens=8)
    check_engine(plain, needs_whole_images=False, tokens_per_image=64)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (config(pipeline_parallel_size=2), "--pipeline-parallel-size 1"),
        (config(enable_expert_parallel=True), "--enable-expert-parallel"),
        (config(speculative_config=object()), "--speculative-config"),
        (config(image_limit=0), "--limit-mm-per-prompt"),
        (config(scheduler=Scheduler), "prismoe serve"),
        (config(use_ubatching=True), "--enable-dbo"),
        (config(use_sequence_parallel_moe=True), "--enable-expert-parallel"),
        (config(lora_config=object()), "--enable-lora"),
        (config(kv_transfer_config=object()), "--kv-transfer-config"),
        (config(prefill_context_parallel_size=2), "--prefill-context-parallel-size 1"),
        (config(max_num_batched_tokens=63), "--max-num-batched-tokens 64"),
        (config(max_num_scheduled_tokens=63), "--max-num-scheduled-tokens 64"),
        (config(long_prefill_token_threshold=63), "--long-prefill-token-threshold 64"),
    ],
)
def test_what_would_route_wrongly_is_refused(settings: Any, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        check_engine(settings, needs_whole_images=True, tokens_per_image=64)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (config(worker_cls="auto"), f"{ROUTED_WORKER} as --worker-cls"),
        (config(kv_transfer_config=object()), "--kv-transfer-config"),
        (config(enable_prompt_embeds=True), "--enable-prompt-embeds"),
    ],
)
def test_what_would_hide_a_request_is_refused(settings: Any, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        check_request_engine(settings)


@pytest.mark.parametrize(("policy", "caching"), [("topk", True), ("task", False)])
def test_prefix_caching_ends_where_a_policy_decides_once_a_request(policy: str, caching: bool) -> None:
    routing = (
        {"policy": "task", "top_k": 1, "experts": [0, 1, 2, 3]} if policy == "task" else {"policy": "topk"}
    )
    arguments = EngineArgs(model=str(PHI), **engine_options(routing))
    assert arguments.create_engine_config().cache_config.enable_prefix_caching == caching


@pytest.mark.parametrize(
    ("routing", "options", "advice"),
    [
        ({"policy": "ltdr", "tail_experts": 9}, {}, "tail_experts is 9: give a number from"),
        ({"policy": "ltdr"}, {"max_num_batched_tokens": 15}, "--max-num-batched-tokens 16"),
        ({"policy": "topk"}, {"enable_lora": True}, "--enable-lora"),
        ({"policy": "task", "top_k": 1, "experts": [0, 1, 2, 3]}, {"worker_cls": "auto"}, "prismoe serve"),
        ({"policy": "cluster"}, {}, "lacks the tensor model.layers"),
    ],
)
def test_vllm_refuses_before_it_starts_an_engine(
    routing: dict[str, Any], options: dict[str, Any], advice: str
) -> None:
    arguments = EngineArgs(model=str(PHI), **engine_options(routing) | options)
    with pytest.raises(ValueError, match=advice):
        arguments.create_engine_config()
