"""Prepares a conversation as vLLM's offline engine does."""

from collections.abc import Sequence
from typing import Any

from vllm import LLM

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [Needed("vllm.entrypoints.common.offline:OfflineInferenceMixin._preprocess_chat", ("conversations",))]


def engine_prompt(llm: LLM, messages: Sequence[Any]) -> dict[str, Any]:
    """The prompt's tokens and media, for any number of runs in the engine."""
    [prompt] = llm._preprocess_chat([[*messages]])
    return dict(prompt)
