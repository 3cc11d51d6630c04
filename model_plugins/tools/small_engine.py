"""A small engine for the tools: eager, one request at a time, just large enough."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from vllm import EngineArgs
from vllm.config.model import ModelDType
from vllm.inputs import EngineInput, mm_input, tokens_input
from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange
from vllm.v1.engine.llm_engine import LLMEngine

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.models.moe_llava.processing import IMAGE_FIELDS, image_inputs
from prismoe.model_plugins.tools.check.reference import IMAGE
from prismoe.model_plugins.tools.checkpoint_facts import CheckpointFacts
from prismoe.model_plugins.worker.engine_options import engine_options

SMALLEST_HEAD, BLOCK = 32, 128
"""Sizes of vLLM's KV cache: the least width of a head, and the largest block of tokens."""


@contextmanager
def small_engine(
    facts: CheckpointFacts, dtype: ModelDType, routing: Mapping[str, Any] | None, length: int, images: int
) -> Iterator[LLMEngine]:
    """Run an engine for requests of up to `length` tokens and `images` images, until the block ends."""
    options = EngineArgs(
        facts.model,
        # Prompts are token ids, so any tokenizer works if the checkpoint has none; vLLM requires one.
        tokenizer=None if facts.tokenizer else str(bundled_checkpoint()),
        dtype=dtype,
        enforce_eager=True,
        max_model_len=length,
        max_num_batched_tokens=length,
        max_num_seqs=1,
        kv_cache_memory_bytes=_kv_cache_bytes(facts, length),
        limit_mm_per_prompt={"image": max(1, images)},
        mm_processor_cache_gb=0,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **engine_options(routing),
    )
    engine = LLMEngine.from_engine_args(options, enable_multiprocessing=True)
    try:
        yield engine
    finally:
        engine.engine_core.shutdown()


def engine_prompt(
    facts: CheckpointFacts, token_ids: Sequence[int], pixel_values: np.ndarray | None, name: str
) -> EngineInput:
    """Make a prompt from token ids, including IMAGE, and `pixel_values` `[images, 3, height, width]`.

    It needs no tokenizer and no image processor. `name` distinguishes its images from those of other prompts.
    """
    length = facts.tower.tokens_per_image
    prompt: list[int] = []
    images = []
    for token in token_ids:
        if token == IMAGE:
            images.append(PlaceholderRange(offset=len(prompt), length=length))
            prompt += [facts.decoder.vocabulary - 1] * length
        else:
            prompt.append(token)
    if not images:
        return tokens_input(prompt)
    inputs = image_inputs(torch.tensor(pixel_values, dtype=torch.float32))
    return mm_input(
        prompt,
        MultiModalKwargsItems.from_hf_inputs(inputs, IMAGE_FIELDS),
        mm_hashes={"image": [f"{name}{index}" for index in range(len(images))]},
        mm_placeholders={"image": images},
    )


def _kv_cache_bytes(facts: CheckpointFacts, length: int) -> int:
    decoder = facts.decoder
    head = max(SMALLEST_HEAD, decoder.hidden_size // decoder.attention_heads)
    per_token = 2 * decoder.layers * decoder.attention_heads * head * torch.float32.itemsize
    return (length // BLOCK + 4) * BLOCK * per_token
