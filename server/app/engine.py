"""vLLM's engine. It starts as under vLLM's launcher, but faster on CPU."""

import os
import signal
import socket
import sys
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.platforms import current_platform

from prismoe.model_plugins.models.moe_llava.config import is_moe_llava
from prismoe.model_plugins.processes import end_forks_with_parent
from prismoe.model_plugins.vllm_seams.front.engines import ask_engines
from prismoe.model_plugins.worker.engine_checks import check_native_engine
from prismoe.server.errors import StartRefused, sentence

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


class EngineArgs(AsyncEngineArgs):
    """vLLM's engine arguments, with errors that are sentences."""

    def create_engine_config(self, *args: Any, **kwargs: Any) -> VllmConfig:
        """Return vLLM's configuration, and choose how the engine process starts.

        Raises StartRefused if the engine can't run with these arguments.
        """
        is_method_set = METHOD in os.environ
        try:
            config = super().create_engine_config(*args, **kwargs)
            if not is_moe_llava(config.model_config.hf_config.to_dict()):
                check_native_engine(config)
        except (ValueError, OSError) as error:
            raise StartRefused(sentence(error)) from error
        if not is_method_set:
            # vLLM chooses spawn, with which each process imports all modules again, in 5 s. This process can
            # be forked on CPU, but not with CUDA.
            forkable = current_platform.is_cpu() and sys.platform == "linux"
            os.environ[METHOD] = "fork" if forkable else "spawn"
        return config


class RoutedEngines:
    """The data-parallel engines of a client (often one). They answer questions about their routers."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    @property
    def errored(self) -> bool:
        """Whether an engine is dead."""
        return self._client.errored

    async def ask(self, method: str, *args: Any) -> list[Any]:
        """Call a method of `RoutingCalls` in each engine, and return each engine's answer.

        All ranks of an engine give the same answer.
        """
        return await ask_engines(self._client, method, *args)


def prepare_fork(listener: socket.socket) -> None:
    """Prepare this process for the fork of the engine process (on Linux)."""

    def after_fork() -> None:
        # Otherwise a signal to the engine would wake the server's event loop like a signal to the server.
        signal.set_wakeup_fd(-1)
        # The engine's workers need new processes: OpenMP reads thread counts and bindings when it is loaded.
        os.environ[METHOD] = "spawn"
        listener.close()

    end_forks_with_parent()
    os.register_at_fork(after_in_child=after_fork)
