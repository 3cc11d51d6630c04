"""Measures the cost of observing a model's own routing on CPU, compared with stock vLLM.

Run `python -m prismoe.benchmarks.serving.native_cost` on an otherwise idle host with 16 GiB of memory. The
model has random weights and --layers decoder layers of Qwen3-VL-30B-A3B (hidden size 2048, 128 experts of
width 768, 8 for each token). One eager engine, in this process and on one core, alternates steps of stock
vLLM and steps that prismoe observes. A pair is two consecutive steps; which comes first alternates. The
program prints the speed of `native` over stock vLLM: the median over the pairs and its 95% interval, for
prefill (a step has 128 tokens of one prompt) and decode (a step has one token). Seconds are the process's
CPU seconds.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

from prismoe.benchmarks.kernels.bench import print_table
from prismoe.benchmarks.serving.routing_cost import on_one_core
from prismoe.model_plugins.moe_layer.model_routing import runners_of
from prismoe.model_plugins.worker.engine_options import engine_options

LAYER: dict[str, Any] = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "moe_intermediate_size": 768,
}
VOCABULARY = 1024
PREFILL_TOKENS = 128


def write_config(folder: Path, layers: int, longest: int = 2048) -> None:
    """Write a config.json with this number of layers; vLLM makes random weights for it."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": layers,
        "intermediate_size": 6144,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": longest,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **LAYER,
    }
    (folder / "config.json").write_text(json.dumps(config))


def start_engine(folder: Path, routing: Mapping[str, Any] | None = None, longest: int = 2048) -> LLM:
    """An engine in this process and on one core that computes a prompt in one step."""
    return LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=longest,
        max_num_batched_tokens=longest,
        max_num_seqs=4,
        kv_cache_memory_bytes=2**28,
        enable_prefix_caching=False,
        **engine_options(routing),
    )


def unwatched(worker: Any) -> Callable[[], Any]:
    """Runs in the worker. Returns a context manager that removes prismoe from the model for the block."""
    routers: list[Any] = [runner.router for runner in runners_of(worker.model_runner.get_model())]

    @contextmanager
    def stock() -> Iterator[None]:
        with ExitStack() as stack:
            for router in routers:
                own = type(router)._compute_routing.__get__(router)
                stack.enter_context(patch.object(router, "_compute_routing", own))
            stack.enter_context(patch.object(worker.routing, "layers", {}))
            yield

    return stock


def prefill_ratios(llm: LLM, stock: Callable[[], Any], pairs: int) -> list[float]:
    """Stock vLLM's seconds over those of `native`, for each pair of prompts; each prompt is one step."""
    draw = random.Random(0)
    return _ratios(llm, stock, pairs, before_step=partial(add_prompt, llm, draw, PREFILL_TOKENS))


def decode_ratios(llm: LLM, stock: Callable[[], Any], pairs: int) -> list[float]:
    """The same ratios for each pair of an answer's tokens."""
    _add(llm, prompt=[1] * 8, answer=2 * pairs + 3)
    llm.llm_engine.step()  # the prompt
    return _ratios(llm, stock, pairs, before_step=lambda: None)


def _ratios(llm: LLM, stock: Callable[[], Any], pairs: int, before_step: Callable[[], None]) -> list[float]:
    found = []
    for pair in range(pairs + 1):
        taken: dict[bool, float] = {}
        for is_native in (False, True) if pair % 2 else (True, False):
            before_step()
            with nullcontext() if is_native else stock():
                start = time.process_time()
                llm.llm_engine.step()
                taken[is_native] = time.process_time() - start
        if pair:  # the first pair warms up
            found.append(taken[False] / taken[True])
    return found


def add_prompt(llm: LLM, draw: random.Random, tokens: int) -> None:
    """Add a request with a random prompt of this many tokens, and an answer of one token."""
    _add(llm, draw.choices(range(VOCABULARY), k=tokens), answer=1)


def _add(llm: LLM, prompt: list[int], answer: int) -> None:
    params = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True, detokenize=False)
    llm.llm_engine.add_request(str(uuid4()), TokensPrompt(prompt_token_ids=prompt), params)


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """The low end of the median's 95% interval, the median, and the high end, from order statistics.

    For less than six values the interval is from the smallest to the largest, which covers less than 95%.
    A mean would be worse, because the host's other load makes some steps much slower.
    """
    values = sorted(values)
    half = 1.96 * len(values) ** 0.5 / 2
    low, high = max(0, int(len(values) / 2 - half)), min(len(values), int(len(values) / 2 + half) + 1)
    return values[low], statistics.median(values), values[high - 1]


def main() -> None:
    """Print the speed of `native` over stock vLLM."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example:\n  python -m prismoe.benchmarks.serving.native_cost --layers 12",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--layers", type=int, default=12, help="layers of the model, 1.2 GB each (default: 12)"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=40,
        help="pairs of prefill steps; decode takes ten times as many (default: 40)",
    )
    args = parser.parse_args()
    if args.pairs < 30:
        parser.error("--pairs: give 30 or more.")
    on_one_core()
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), args.layers)
        llm = start_engine(Path(folder))
        (stock,) = llm.collective_rpc(unwatched)
        rows = []
        for workload, ratios in {
            "prefill": prefill_ratios(llm, stock, args.pairs),
            "decode": decode_ratios(llm, stock, 10 * args.pairs),
        }.items():
            low, median, high = median_interval(ratios)
            rows.append(
                {
                    "workload": workload,
                    "pairs": len(ratios),
                    "native over stock": f"{median:.4f} ({low:.4f}-{high:.4f})",
                }
            )
        print_table(rows)


if __name__ == "__main__":
    main()
