"""vLLM's engine, started as vLLM's launcher starts it, only sooner on CPU."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.tasks import SupportedTask

from prismoe.model_plugins.worker.processes import end_forks_with_parent
from prismoe.server.errors import StartRefused, sentence

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"


class EngineArgs(AsyncEngineArgs):
    """vLLM's engine arguments, whose errors are sentences."""

    def create_engine_config(self, *args: Any, **kwargs: Any) -> VllmConfig:
        """vLLM's configuration. On the way, choose how the engine process will start."""
        asked_for = METHOD in os.environ
        try:
            config = super().create_engine_config(*args, **kwargs)
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
        self._core: Any = client.engine_core  # type: ignore[attr-defined]  # AsyncLLM's

    @property
    def errored(self) -> bool:
        """Whether an engine is dead."""
        return self._client.errored

    async def ask(self, method: str, *args: Any) -> list[Any]:
        """Each engine's answer to one of `RoutingWorkerExtension`'s methods."""
        answers = await self._core.call_utility_all_async("collective_rpc", method, None, args, None)
        # The ranks of an engine route every token of its requests, so they answer alike.
        return [ranks[0] for ranks in answers]


def send_images_always(engine: EngineClient) -> None:
    """Send the engine each image's tensors, whether or not an earlier request had the same image.

    vLLM's front takes an image for sent once it is processed. Where that request is then refused, or only its
    tokens are counted, the engine never gets the image, and fails the next request that has it.
    """
    renderer: Any = engine.renderer
    renderer._mm_processor_cache = renderer._mm_processor_only_cache  # keeps what it processed, and sends it


def check_sampling_early(engine: EngineClient, tasks: tuple[SupportedTask, ...]) -> None:
    """Check how a request is to be sampled as soon as that is read, before its answer begins.

    vLLM does when the engine gets the request: a stream has its status by then, and that of /v1/responses is
    cut off.
    """
    check = engine.input_processor._validate_params

    def checked(read: Callable[..., SamplingParams]) -> Callable[..., SamplingParams]:
        def read_and_check(*args: Any, **kwargs: Any) -> SamplingParams:
            params = read(*args, **kwargs)
            check(params, tasks)
            return params

        return read_and_check

    kinds: tuple[Any, ...] = (ChatCompletionRequest, CompletionRequest, ResponsesRequest)
    for kind in kinds:
        kind.to_sampling_params = checked(kind.to_sampling_params)


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
