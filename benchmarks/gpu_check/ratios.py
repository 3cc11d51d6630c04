"""Compares speeds on a GPU. Figures are ratios unless they name a unit."""

import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

from prismoe.benchmarks.gpu_check.check import Figures, Host
from prismoe.benchmarks.kernels.bench import Variants
from prismoe.benchmarks.kernels.bench_gpu import experts_on_gpu, milliseconds, vllm_triton_experts
from prismoe.benchmarks.serving.native_cost import VOCABULARY, write_config
from prismoe.benchmarks.serving.skip_gain import kept_uses
from prismoe.kernels.routing import top_experts, use_first
from prismoe.model_plugins.moe_layer.gpu_router import fused_routing
from prismoe.model_plugins.moe_layer.router import trial_inputs
from prismoe.model_plugins.routing.policies.dual_threshold import DualThreshold
from prismoe.model_plugins.worker.engine_options import engine_options

SKIPPED = (0.3, 0.6, 0.88)
BASE = "fixed k = 2, ms"


class Shape(NamedTuple):
    """The sizes of a MoE layer."""

    experts: int
    top_k: int
    hidden: int
    width: int


QWEN3_VL = Shape(experts=128, top_k=8, hidden=2048, width=768)
"""The sizes of Qwen3-VL-30B-A3B."""


def ragged_experts(host: Host, tokens: int, hidden: int = 2048) -> Figures:
    """The time of each way to run ragged experts, over that of vLLM's experts with 2 for every token.

    Tokens use different numbers of experts. Unused slots have weight 0, or are left out as expert -1, or
    don't exist in the grouped product.
    """
    row = experts_on_gpu(torch.bfloat16, hidden, tokens)
    ways = ("left out", "weight 0", "grouped", "grouped_mm", "loop", "floor")
    ratios = {name: row[f"{name}, ms"] / row[BASE] for name in ways}
    return {BASE: row[BASE], "experts used": row["experts used"], **ratios}


def skipped_experts(host: Host, tokens: int, shape: Shape = QWEN3_VL) -> Figures:
    """The speed of one MoE layer under `dual_threshold` over that with all k experts, and the prediction.

    Four fifths of the tokens are vision tokens. Each share is the share of their expert uses that is skipped;
    the prediction is the ratio of all expert uses to those that remain. Routing is timed in microseconds.
    """
    with torch.device(host.device):
        w13 = torch.randn(shape.experts, 2 * shape.width, shape.hidden, dtype=torch.bfloat16) / 45
        w2 = torch.randn(shape.experts, shape.hidden, shape.width, dtype=torch.bfloat16) / 28
        hidden_TD = torch.randn(tokens, shape.hidden, dtype=torch.bfloat16)
        logits_TE = torch.randn(tokens, shape.experts)
        policy = DualThreshold(top_k=shape.top_k, norm_topk_prob=True, vision_threshold=0.1)
        step = trial_inputs(policy, shape.experts, [-1] * (tokens // 5) + [0] * (tokens - tokens // 5))
    experts_TA, weights_TA = top_experts(logits_TE, shape.top_k, True)
    all_slots = weights_TA, experts_TA.int().contiguous()
    stock, ragged = (vllm_triton_experts(w13, w2, leaves_out) for leaves_out in (False, True))
    variants: dict[str, Callable[[], object]] = {"all": lambda: stock(hidden_TD, *all_slots)}
    predicted = {}
    for skipped in SKIPPED:
        count_T = kept_uses(tokens, shape.top_k, skipped).to(host.device)
        kept_TA, kept_weights_TA = use_first(experts_TA, weights_TA, count_T)
        variants[f"{skipped:.0%}"] = partial(
            ragged, hidden_TD, kept_weights_TA.contiguous(), kept_TA.int().contiguous()
        )
        predicted[f"{skipped:.0%} predicted"] = tokens * shape.top_k / int(count_T.sum())
    taken = milliseconds(variants)
    routers: Variants = {
        "fused router, µs": lambda: fused_routing(policy, step),
        "plain router, µs": lambda: policy.route(step),
    }
    return (
        {"all, ms": taken["all"]}
        | {name: taken["all"] / value for name, value in taken.items() if name != "all"}
        | predicted
        | {name: 1000 * value for name, value in milliseconds(routers).items()}
    )


class Load(NamedTuple):
    """Requests that are sent at once, and the tokens of each prompt and answer."""

    requests: int
    prompt: int
    answer: int


LOADS = {"prefill": Load(8, 2048, 1), "decode": Load(16, 8, 128)}
DRY_LOADS = {"prefill": Load(2, 16, 1), "decode": Load(2, 4, 3)}
DRY_SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
}


def watched_engine(host: Host) -> Figures:
    """The speed of `native` over stock vLLM, and its speed with an inspected request over that without one.

    Two engines with Qwen3-VL-30B-A3B's decoder layers and random weights take turns; each figure is the
    median over the rounds. One of the requests is inspected.
    """
    rounds, loads = (1, DRY_LOADS) if host.is_dry else (9, LOADS)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_config(folder, layers=1 if host.is_dry else 12, longest=4096)
        if host.is_dry:
            config = folder / "config.json"
            config.write_text(json.dumps(json.loads(config.read_text()) | DRY_SIZES))
        stock, native = _engine(host, folder, {}), _engine(host, folder, engine_options())
        try:
            figures: dict[str, float] = {}
            for load_name, load in loads.items():
                counting, inspecting = _ratios(stock, native, load, rounds)
                figures[f"{load_name}, native over stock"] = counting
                figures[f"{load_name}, inspected over not"] = inspecting
            return figures
        finally:
            for llm in (stock, native):
                llm.llm_engine.engine_core.shutdown()


def _engine(host: Host, folder: Path, options: dict[str, Any]) -> LLM:
    return LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="float32" if host.is_dry else "bfloat16",
        enforce_eager=host.is_dry,
        max_model_len=4096,
        max_num_batched_tokens=4096,
        max_num_seqs=16,
        kv_cache_memory_bytes=2**26 if host.is_dry else 2**32,
        gpu_memory_utilization=0.3,  # two engines share the GPU
        enable_prefix_caching=False,
        **options,
    )


def _ratios(stock: LLM, native: LLM, load: Load, rounds: int) -> tuple[float, float]:
    """The medians over the rounds. An additional first round warms up."""
    draw = random.Random(0)
    counting, inspecting = [], []
    for turn in range(rounds + 1):
        prompts = [draw.choices(range(VOCABULARY), k=load.prompt) for _ in range(load.requests)]
        runs: dict[str, Callable[[], float]] = {
            "stock": partial(seconds, stock, prompts, load.answer),
            "native": partial(seconds, native, prompts, load.answer),
            "inspected": partial(seconds, native, prompts, load.answer, is_inspected=True),
        }
        order = draw.sample(list(runs), len(runs))
        taken = {name: runs[name]() for name in order}
        if turn:
            counting.append(taken["stock"] / taken["native"])
            inspecting.append(taken["native"] / taken["inspected"])
    return statistics.median(counting), statistics.median(inspecting)


def seconds(llm: LLM, prompts: Sequence[list[int]], answer: int, is_inspected: bool = False) -> float:
    """The seconds that all requests take. Raises ValueError if the inspected request lacks tokens."""
    params = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True, detokenize=False)
    names = [str(uuid4()) for _ in prompts]
    if is_inspected:
        llm.collective_rpc("prismoe_start_inspection", args=(names[0], len(prompts[0]) + answer, False))
    start = time.perf_counter()
    for name, prompt in zip(names, prompts, strict=True):
        llm.llm_engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), params)
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    taken = time.perf_counter() - start
    if is_inspected:
        rows = llm.collective_rpc("prismoe_inspected_rows", args=(names[0],))[0]
        llm.collective_rpc("prismoe_end_inspection", args=(names[0],))
        if len(rows["positions"]) < len(prompts[0]) + answer - 1:
            raise ValueError(f"The inspection has only {len(rows['positions'])} of the request's tokens.")
    return taken
