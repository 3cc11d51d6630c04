"""Checks that an engine gives the same answers and counts as vLLM's V2 runner on CPU."""

from pathlib import Path
from typing import Any

import numpy as np
from vllm import LLM, SamplingParams

from prismoe.benchmarks.gpu_check.cases import CASES, NEW_TOKENS, Case, weights_digest
from prismoe.benchmarks.gpu_check.check import Figures, Host
from prismoe.benchmarks.gpu_check.golden import Answer, Golden, read
from prismoe.model_plugins.worker.engine_options import engine_options


def same_as_golden(host: Host, name: str, is_eager: bool) -> Figures:
    """Compare every token and every cell of the expert load. Raises AssertionError if one differs."""
    case, golden = CASES[name], read()[name]
    with case.folder() as folder:
        seen, mode = run(case, folder, is_eager)
    if wrong := differences(seen, golden):
        raise AssertionError("; ".join(wrong))
    return {
        "tokens": sum(len(answer.tokens) for answer in seen.answers),
        "experts used": int(np.sum(seen.expert_tokens)),
        "CUDA graphs": mode,
    }


def run(case: Case, folder: Path, is_eager: bool) -> tuple[Golden, str]:
    """The results of a float32 engine for the case's requests, sent at once, and its CUDA graph mode."""
    requests = case.requests(folder)
    options: dict[str, Any] = {
        "dtype": "float32",
        "enforce_eager": is_eager,
        "max_model_len": 512,
        "max_num_batched_tokens": case.step,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 2**28,
        "gpu_memory_utilization": 0.3,  # this share has to be free
        "enable_prefix_caching": False,  # its blocks have other sizes on CPU
        "limit_mm_per_prompt": {"image": 2},
        "disable_log_stats": True,
    }
    llm = LLM(str(folder), **options, **engine_options(case.routing))
    try:
        outputs = llm.generate(requests, _sampling(case, len(requests)), use_tqdm=False)
        load = llm.collective_rpc("prismoe_expert_load")[0]
        mode = llm.llm_engine.vllm_config.compilation_config.cudagraph_mode
    finally:
        llm.llm_engine.engine_core.shutdown()
    answers = [
        Answer(prompt=list(output.prompt_token_ids or ()), tokens=list(output.outputs[0].token_ids))
        for output in outputs
    ]
    golden = Golden(
        weights=weights_digest(folder),
        answers=answers,
        expert_tokens=load["expert_tokens"],
        tail_tokens=load["tail_tokens"],
    )
    return golden, mode.name if mode else "NONE"


def _sampling(case: Case, requests: int) -> list[SamplingParams]:
    return [
        SamplingParams(
            temperature=0,
            max_tokens=NEW_TOKENS,
            ignore_eos=True,
            extra_args={"task": index % case.tasks} if case.tasks else None,
            **case.sampling,
        )
        for index in range(requests)
    ]


def differences(seen: Golden, golden: Golden) -> list[str]:
    """The differences as sentences; an empty list if there are none."""
    if seen.weights != golden.weights:
        return ["the checkpoint that this host generates has other weights"]
    found = []
    for place, (mine, theirs) in enumerate(zip(seen.answers, golden.answers, strict=True)):
        if mine.prompt != theirs.prompt:
            found.append(f"the prompt of request {place} has other tokens")
        elif mine.tokens != theirs.tokens:
            found.append(f"request {place} gets the answer {mine.tokens} instead of {theirs.tokens}")
    for name in ("expert_tokens", "tail_tokens"):
        apart = np.abs(np.subtract(getattr(seen, name), getattr(golden, name)))
        if apart.any():
            found.append(f"{np.count_nonzero(apart)} of {apart.size} {name} differ, by {apart.max()} at most")
    return found
