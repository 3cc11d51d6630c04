"""A step of made-up tokens through vLLM's model runner, as idle data-parallel engines take them.

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
    """How many tokens a dummy step of so many decoding requests has, or of as many as fit."""
    per_request: int = getattr(runner, "uniform_decode_query_len", 0) or runner.decode_query_len
    return per_request * max(1, min(requests, most_tokens // per_request))


def take_dummy_step(runner: Any, num_tokens: int) -> None:
    """Take a step of as many tokens as `dummy_step_tokens` says. On all ranks, for they take it together."""
    runner._dummy_run(num_tokens, uniform_decode=True, skip_eplb=True)
