"""Moves vLLM's check of a request's sampling parameters to the front."""

from collections.abc import Callable
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.sampling_params import SamplingParams
from vllm.tasks import SupportedTask

from prismoe.model_plugins.vllm_seams.check import Needed

REQUESTS: tuple[Any, ...] = (ChatCompletionRequest, CompletionRequest, ResponsesRequest)
NEEDS = [
    Needed("vllm.v1.engine.input_processor:InputProcessor._validate_params", ("params", "supported_tasks")),
    *(Needed(f"{kind.__module__}:{kind.__name__}.to_sampling_params") for kind in REQUESTS),
]


def check_sampling_early(engine: EngineClient, tasks: tuple[SupportedTask, ...]) -> None:
    """Check a request's sampling parameters as soon as they are read, before its answer begins.

    vLLM checks them when the engine gets the request: by then a stream has its status, and a stream of
    /v1/responses is cut off.
    """
    check = engine.input_processor._validate_params

    def checked(read: Callable[..., SamplingParams]) -> Callable[..., SamplingParams]:
        def read_and_check(*args: Any, **kwargs: Any) -> SamplingParams:
            params = read(*args, **kwargs)
            check(params, tasks)
            return params

        return read_and_check

    for kind in REQUESTS:
        kind.to_sampling_params = checked(kind.to_sampling_params)
