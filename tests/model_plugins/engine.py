"""vLLM engines for tests, and a recorder of their routers' decisions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from vllm import LLM, RequestOutput, SamplingParams, envs

from prismoe.model_plugins.worker.engine_options import engine_options
from tests.paths import DATA
from tests.runners import Runner, started_with

PHI = DATA / "moe-llava-phi-tiny"
Recording = dict[int, dict[str, list[np.ndarray]]]


@contextmanager
def engine(
    checkpoint: Path, routing: Mapping[str, Any] | None = None, *, runner: Runner = "v1", **options: Any
) -> Iterator[LLM]:
    """Run an eager float32 engine that returns raw logits, until the block ends.

    An engine with V2 needs its own process: one in this process has the runner that this process started
    with.
    """
    envs.disable_envs_cache()  # An earlier engine in this process may have fixed vLLM's settings.
    settings: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_logprobs": -1,
        "logprobs_mode": "raw_logits",
        "disable_log_stats": True,
    }
    with started_with(runner):
        llm = LLM(str(checkpoint), **settings | dict(engine_options(routing)) | options)
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()


@contextmanager
def rank_cores(ranks: int) -> Iterator[None]:
    """The cores of each rank, for ranks that share a machine."""
    with pytest.MonkeyPatch.context() as environment:
        if ranks > 1:
            environment.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, range(ranks))))
        yield


def greedy(max_tokens: int, with_prompt: bool = True) -> SamplingParams:
    """Greedy sampling that returns the logits of the whole vocabulary."""
    return SamplingParams(
        temperature=0,
        max_tokens=max_tokens,
        ignore_eos=True,
        logprobs=-1,
        prompt_logprobs=-1 if with_prompt else None,
    )


def logits(positions: Any) -> np.ndarray:
    """vLLM's logprobs in the mode raw_logits as `[positions, vocabulary]`."""
    return np.array([[entry[token].logprob for token in range(len(entry))] for entry in positions])


def prompt_logits(output: RequestOutput) -> np.ndarray:
    """The logits at each position of the prompt."""
    first, answer = output.prompt_logprobs, output.outputs[0].logprobs
    assert first is not None and answer is not None
    return logits([*first[1:], answer[0]])


def start_recording(model: Any) -> None:
    """From now on, record the gate's logits and the router's experts and weights in each MoE layer."""
    recording: dict[int, dict[str, list[Tensor]]] = {}
    for layer, decoder_layer in enumerate(model.model.layers):
        if layer in model.experts_by_layer:
            recording[layer] = {"logits": [], "experts": [], "weights": []}
            _record_layer(decoder_layer.mlp, recording[layer])
    model.recording = recording


def _record_layer(mlp: Any, record: dict[str, list[Tensor]]) -> None:
    router = mlp.experts.router
    decide = router.decide

    def recorded(hidden: Tensor, gate_logits: Tensor) -> tuple[Tensor, Tensor, bool]:
        weights, experts, all_used = decide(hidden, gate_logits)
        for name, value in (("logits", gate_logits), ("experts", experts), ("weights", weights)):
            record[name].append(value.clone())
        return weights, experts, all_used

    router.decide = recorded


def take_recording(model: Any) -> Recording:
    """The recorded tensors of each step since the last call, by layer."""
    taken = {
        layer: {name: [step.numpy() for step in steps] for name, steps in record.items()}
        for layer, record in model.recording.items()
    }
    for record in model.recording.values():
        for steps in record.values():
            steps.clear()
    return taken


def same_on_all_ranks(recordings: list[Recording]) -> Recording:
    """Rank 0's recording, after a check that all ranks have the same experts and weights bit for bit."""
    for other in recordings[1:]:
        for layer, record in recordings[0].items():
            for name in ("experts", "weights"):
                for mine, theirs in zip(record[name], other[layer][name], strict=True):
                    np.testing.assert_array_equal(mine, theirs)
    return recordings[0]
