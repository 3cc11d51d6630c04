"""Calls the data-parallel engines behind a client."""

from typing import Any

from vllm.engine.protocol import EngineClient

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [
    Needed("vllm.v1.engine.core_client:AsyncMPClient.call_utility_all_async", ("method", "args")),
    Needed("vllm.v1.engine.async_llm:AsyncLLM.__init__", attributes=("engine_core", "output_handler")),
]


async def ask_engines(client: EngineClient, method: str, *args: Any) -> list[Any]:
    """Call a method in each engine's workers; the results of each engine's first rank."""
    core: Any = client.engine_core  # type: ignore[attr-defined]  # AsyncLLM's
    answers = await core.call_utility_all_async("collective_rpc", method, None, args, None)
    return [ranks[0] for ranks in answers]


def stop_hearing(client: EngineClient) -> None:
    """Stop the task that waits for the engine's answers: it would log the engine's end as an error."""
    if handler := client.output_handler:  # type: ignore[attr-defined]  # AsyncLLM's
        handler.cancel()
