"""Settings that would miscount a vLLM model stop the start with a message."""

from types import SimpleNamespace
from typing import Any

import pytest

from prismoe.model_plugins.worker import engine_checks
from prismoe.model_plugins.worker.engine_checks import check_native_engine
from prismoe.model_plugins.worker.engine_options import additional_config

PLAIN = {
    "is_moe": True,
    "data_parallel_size": 1,
    "enable_expert_parallel": False,
    "pipeline_parallel_size": 1,
    "prefill_context_parallel_size": 1,
    "use_ubatching": False,
    "enable_elastic_ep": False,
    "kv_sharing_fast_prefill": False,
    "enable_prompt_embeds": False,
}


def config(routing: Any = None, lora: object = None, **changes: Any) -> Any:
    settings = SimpleNamespace(**PLAIN | changes)
    return SimpleNamespace(
        additional_config=additional_config(routing),
        lora_config=lora,
        parallel_config=settings,
        cache_config=settings,
        model_config=settings,
    )


@pytest.mark.parametrize(
    "changes", [{}, {"data_parallel_size": 2, "is_moe": False}, {"lora": object(), "is_moe": False}]
)
def test_plain_settings_are_served(changes: dict[str, Any]) -> None:
    check_native_engine(config(**changes))


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"enable_expert_parallel": True}, "--enable-expert-parallel"),
        ({"data_parallel_size": 2}, "--data-parallel-size"),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size"),
        ({"prefill_context_parallel_size": 2}, "--prefill-context-parallel-size"),
        ({"use_ubatching": True}, "--enable-dbo"),
        ({"enable_elastic_ep": True}, "--enable-elastic-ep"),
        ({"lora": object()}, "only on GPUs: leave --enable-lora"),
        ({"kv_sharing_fast_prefill": True}, "--kv-sharing-fast-prefill"),
        ({"enable_prompt_embeds": True}, "--enable-prompt-embeds"),
    ],
)
def test_settings_that_miscount_are_refused(changes: dict[str, Any], option: str) -> None:
    with pytest.raises(ValueError, match=option):
        check_native_engine(config(**changes))


def test_an_adapter_is_served_on_a_gpu_without_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_checks, "current_platform", SimpleNamespace(is_cpu=lambda: False))
    check_native_engine(config(lora=object()))
    with pytest.raises(ValueError, match="a policy may give another: leave --enable-lora out"):
        check_native_engine(config(lora=object(), routing={"policy": "dual_threshold"}))
