"""Changes the threads in which vLLM prepares a request's text and images."""

from concurrent.futures import Executor
from contextvars import copy_context
from typing import Any

from vllm.renderers import BaseRenderer

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [Needed("vllm.renderers.base:BaseRenderer.__init__", attributes=("_executor", "_mm_executor"))]


def keep_context(renderer: BaseRenderer) -> None:
    """Make work in the renderer's threads see the context variables of its caller."""
    for executor in (renderer._executor, renderer._mm_executor):
        _keep_context(executor)


def _keep_context(executor: Executor) -> None:
    submit = executor.submit

    def submit_in_context(work: Any, /, *args: Any, **kwargs: Any) -> Any:
        return submit(copy_context().run, work, *args, **kwargs)

    executor.submit = submit_in_context  # type: ignore[method-assign]
