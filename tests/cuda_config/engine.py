"""vLLM's configuration for prismoe's options, and models that are built with it on the CPU."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed.parallel_state import (
    destroy_model_parallel,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from prismoe.model_plugins.plugin import register
from prismoe.model_plugins.worker.engine_options import engine_options
from tests.paths import DATA

LTDR = {"policy": "ltdr"}


def config_of(checkpoint: Path, routing: Mapping[str, Any] | None, **options: Any) -> VllmConfig:
    """The configuration of an engine with default options, except for the length of its prompts."""
    register()
    return EngineArgs(
        model=str(checkpoint), max_model_len=512, **engine_options(routing) | options
    ).create_engine_config()


@contextmanager
def one_rank(config: VllmConfig, folder: Path) -> Iterator[None]:
    """Set up one rank that computes on the CPU, with the groups that this configuration needs."""
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            init_distributed_environment(1, 0, f"file://{folder}/ranks", 0, "gloo")
        initialize_model_parallel()
        dtype = config.model_config.dtype
        assert isinstance(dtype, torch.dtype)
        try:
            with set_default_torch_dtype(dtype), torch.device("cpu"):
                yield
        finally:
            destroy_model_parallel()


def built(config: VllmConfig, folder: Path) -> nn.Module:
    """Build the model without weights."""
    with one_rank(config, folder):
        return initialize_model(config)


def engine_of() -> dict[str, Any]:
    """vLLM's choices for MoE-LLaVA under a policy."""
    config = config_of(DATA / "moe-llava-phi-tiny", LTDR)
    scheduler, parallel = config.scheduler_config, config.parallel_config
    assert isinstance(scheduler.scheduler_cls, str)
    return {
        "runner": "V2" if config.use_v2_model_runner else "V1",
        "asynchronous": scheduler.async_scheduling,
        "CUDA graphs": str(config.compilation_config.cudagraph_mode.name),
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "scheduler": scheduler.scheduler_cls.rpartition(".")[2],
        "worker": parallel.worker_cls.rpartition(".")[2],
    }
