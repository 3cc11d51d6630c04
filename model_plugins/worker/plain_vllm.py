"""Adds prismoe to engines that vLLM's own server or program starts, with `VLLM_PLUGINS=prismoe`."""

from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.platforms import current_platform

from prismoe.model_plugins.vllm_seams.check import check
from prismoe.model_plugins.vllm_seams.engine import engine_config
from prismoe.model_plugins.worker.engine_checks import check_native_engine
from prismoe.model_plugins.worker.engine_options import ROUTED_WORKER, use_routed_worker

logger = init_logger("vllm.prismoe.plugin")


def watch_experts() -> None:
    """Make each engine that is configured in this process from now on count its experts' load."""
    check(engine_config.NEEDS)
    engine_config.before_platform(_watch)


def _watch(vllm_config: VllmConfig) -> None:
    """Use the worker that counts. Raises ValueError where prismoe can't count correctly."""
    if vllm_config.model_config is None or vllm_config.parallel_config.worker_cls == ROUTED_WORKER:
        return
    if not (current_platform.is_cpu() or current_platform.is_cuda_alike()):
        logger.warning("prismoe has no worker for %s: nothing is counted.", current_platform.device_name)
        return
    check_native_engine(vllm_config)
    use_routed_worker(vllm_config)
