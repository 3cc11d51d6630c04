"""Runs a step of made-up tokens through vLLM's model runner, like idle data-parallel engines.

It writes nothing to the KV cache and embeds nothing. Captured graphs and compiled code run as in a real step.
"""

from typing import Any

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [
    Needed(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._dummy_run",
        ("num_tokens",),
        attributes=("uniform_decode_query_len",),
    ),
    Needed(
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner._dummy_run",
        ("num_tokens",),
        attributes=("decode_query_len",),
    ),
]


def dummy_step_tokens(runner: Any, requests: int, most_tokens: int) -> int:
    """The number of tokens of a dummy step with `requests` decoding requests, or as many as fit."""
    per_request: int = getattr(runner, "uniform_decode_query_len", 0) or runner.decode_query_len
    return per_request * max(1, min(requests, most_tokens // per_request))


def take_dummy_step(runner: Any, num_tokens: int) -> None:
    """Run a step of `num_tokens` tokens (see `dummy_step_tokens`). All ranks must call this together."""
    runner._dummy_run(num_tokens, uniform_decode=True, skip_eplb=True)
