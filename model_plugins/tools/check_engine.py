"""The engine that `prismoe check` runs a checkpoint in: eager, one request at a time, recorded."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm import EngineArgs, SamplingParams
from vllm.config.model import ModelDType
from vllm.inputs import EngineInput, mm_input, tokens_input
from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange
from vllm.v1.engine.llm_engine import LLMEngine

from prismoe.model_plugins.bundled import bundled_checkpoint
from prismoe.model_plugins.engine_options import engine_options
from prismoe.model_plugins.moe_llava.processing import IMAGE_FIELDS, image_inputs
from prismoe.model_plugins.tools.checkpoint_facts import CheckpointFacts
from prismoe.model_plugins.tools.reference import IMAGE, Case

SMALLEST_HEAD, BLOCK = 32, 128
"""Bounds of vLLM's KV cache: a head's width at least, and the largest block of tokens."""


@dataclass(frozen=True)
class Run:
    """What the engine computed for one case: rows [S + steps - 1, …] by name, and the greedy tokens."""

    rows: Mapping[str, np.ndarray]
    greedy_ids: list[int]


class CheckEngine:
    """A checkpoint that was loaded, which is the proof that it can be."""

    def __init__(self, engine: LLMEngine, facts: CheckpointFacts) -> None:
        self._engine = engine
        self._facts = facts

    def routing(self) -> Mapping[str, Any]:
        """What is in force, per layer."""
        return self._rpc("prismoe_routing")

    def unused_tensors(self) -> Sequence[str]:
        """The checkpoint's tensors that the model has no use for."""
        return self._rpc("prismoe_unused_tensors")

    def run(self, cases: Sequence[Case]) -> list[Run]:
        """Run each case by itself."""
        self._rpc("prismoe_start_recording")
        return [self._run(case) for case in cases]

    def _run(self, case: Case) -> Run:
        sampling = SamplingParams(temperature=0, max_tokens=case.steps, ignore_eos=True, detokenize=False)
        self._engine.add_request(case.prefix, self._prompt(case), sampling)
        outputs: list[Any] = []
        while self._engine.has_unfinished_requests():
            outputs += self._engine.step()
        with tempfile.TemporaryDirectory(prefix="prismoe-") as folder:
            file = Path(folder) / "recording.npz"
            self._rpc("prismoe_save_recording", str(file))
            with np.load(file) as recording:
                return Run(dict(recording), list(outputs[-1].outputs[0].token_ids))

    def _prompt(self, case: Case) -> EngineInput:
        """The case's own token ids and pixel values: neither tokenizer nor image processor come in."""
        length = self._facts.tower.tokens_per_image
        token_ids: list[int] = []
        images = []
        for token in case.token_ids:
            if token == IMAGE:
                images.append(PlaceholderRange(offset=len(token_ids), length=length))
                token_ids += [self._facts.decoder.vocabulary - 1] * length
            else:
                token_ids.append(token)
        if not images:
            return tokens_input(token_ids)
        inputs = image_inputs(torch.tensor(case.pixel_values, dtype=torch.float32))
        return mm_input(
            token_ids,
            MultiModalKwargsItems.from_hf_inputs(inputs, IMAGE_FIELDS),
            mm_hashes={"image": [f"{case.prefix}{index}" for index in range(len(images))]},
            mm_placeholders={"image": images},
        )

    def _rpc(self, method: str, *arguments: str) -> Any:
        return self._engine.collective_rpc(method, args=arguments)[0]


@contextmanager
def check_engine(
    facts: CheckpointFacts, dtype: ModelDType, routing: Mapping[str, Any] | None, cases: Sequence[Case] = ()
) -> Iterator[CheckEngine]:
    """An engine for the checkpoint, just large enough for the cases, which ends with the block."""
    length = max([case.size + case.steps for case in cases] + [facts.tower.tokens_per_image + 1])
    images = max((case.token_ids.count(IMAGE) for case in cases), default=1)
    options = EngineArgs(
        facts.model,
        # Cases are token ids, so any tokenizer will do where the checkpoint has none; vLLM wants one.
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
        yield CheckEngine(engine, facts)
    finally:
        engine.engine_core.shutdown()


def _kv_cache_bytes(facts: CheckpointFacts, length: int) -> int:
    decoder = facts.decoder
    head = max(SMALLEST_HEAD, decoder.hidden_size // decoder.attention_heads)
    per_token = 2 * decoder.layers * decoder.attention_heads * head * torch.float32.itemsize
    return (length // BLOCK + 4) * BLOCK * per_token
