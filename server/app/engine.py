"""vLLM's engine, started as vLLM's launcher starts it, only sooner on CPU."""

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
    """vLLM's engine arguments, whose errors are sentences."""

    def create_engine_config(self, *args: Any, **kwargs: Any) -> VllmConfig:
        """vLLM's configuration. On the way, choose how the engine process will start."""
        asked_for = METHOD in os.environ
        try:
            config = super().create_engine_config(*args, **kwargs)
            if not is_moe_llava(config.model_config.hf_config.to_dict()):
                check_native_engine(config)
        except (ValueError, OSError) as error:
            raise StartRefused(sentence(error)) from error
        if not asked_for:
            # vLLM chooses spawn, with which each process imports everything anew: 5 s. On CPU nothing in this
            # process stands against a fork; CUDA would.
            forkable = current_platform.is_cpu() and sys.platform == "linux"
            os.environ[METHOD] = "fork" if forkable else "spawn"
        return config


class RoutedEngines:
    """The data-parallel engines behind a client (often one), asked about their routers."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    @property
    def errored(self) -> bool:
        """Whether an engine is dead."""
        return self._client.errored

    async def ask(self, method: str, *args: Any) -> list[Any]:
        """Each engine's answer to one of `RoutingWorkerExtension`'s methods; its ranks answer alike."""
        return await ask_engines(self._client, method, *args)


def prepare_fork(listener: socket.socket) -> None:
    """What an engine process forked from this one (on Linux) must do differently."""

    def after_fork() -> None:
        # Signals to this process would wake the server's event loop, as if they were sent to the server.
        signal.set_wakeup_fd(-1)
        # Its workers need a fresh process: OpenMP reads thread counts and bindings when it is loaded.
        os.environ[METHOD] = "spawn"
        listener.close()

    end_forks_with_parent()
    os.register_at_fork(after_in_child=after_fork)
