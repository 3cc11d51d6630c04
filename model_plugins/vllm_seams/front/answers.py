"""Watches each answer that vLLM's front requests from the engine."""

from collections.abc import Callable
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.v1.engine import EngineCoreRequest

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [
    Needed(
        "vllm.v1.engine.output_processor:OutputProcessor.add_request",
        ("request", "prompt", "parent_req", "request_index", "queue"),
        attributes=("request_states",),
    ),
    Needed("vllm.v1.engine.async_llm:AsyncLLM._add_request", attributes=("add_request", "add_request_async")),
    Needed("vllm.v1.core.kv_cache_utils:generate_block_hash_extra_keys", attributes=("cache_salt",)),
]


def tell_answers(engine: EngineClient, begin: Callable[[EngineCoreRequest, int, Any], None]) -> None:
    """Call `begin` once when an answer begins: with its request, its index, and vLLM's state of it."""
    processor: Any = engine.output_processor  # type: ignore[attr-defined]  # AsyncLLM's
    add_request = processor.add_request

    def add_and_begin(
        request: EngineCoreRequest, prompt: Any, parent: Any = None, index: int = 0, queue: Any = None
    ) -> None:
        add_request(request, prompt, parent, index, queue)
        begin(request, index, processor.request_states[request.request_id])

    processor.add_request = add_and_begin


def salt_requests(engine: EngineClient, salted: Callable[[str | None], str | None]) -> None:
    """Let `salted` replace each request's salt of the prefix cache before it goes to an engine."""

    def salt(request: EngineCoreRequest, index: int, state: Any) -> None:
        request.cache_salt = salted(request.cache_salt)

    tell_answers(engine, salt)
