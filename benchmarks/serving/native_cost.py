"""What watching a model's own routing costs on CPU, beside stock vLLM.

`python -m prismoe.benchmarks.serving.native_cost`, on a host with nothing else to do and 16 GiB of memory.
The model has random weights and the decoder layers of Qwen3-VL-30B-A3B (hidden size 2048, 128 experts of
width 768, 8 a token), as many as asked for. One eager engine, in this process and on one core, answers the
same prompt in turns as vLLM has it and as prismoe watches it: an even turn begins with one, an odd one with
the other. Printed is the speed of `native` over stock, mean and 95% interval over the pairs of turns, for
prefill and for decode. Seconds are the process's CPU seconds.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vllm import LLM, SamplingParams

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
WORKLOADS = {"prefill": (128, 1), "decode": (8, 16)}
"""Tokens of the prompt and of the answer."""


def write_config(folder: Path, layers: int) -> None:
    """A config.json of so many of the layers; vLLM makes the weights up."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": layers,
        "intermediate_size": 6144,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **LAYER,
    }
    (folder / "config.json").write_text(json.dumps(config))


def start_engine(folder: Path) -> LLM:
    """An engine in this process and on one core."""
    return LLM(
        str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=4,
        kv_cache_memory_bytes=2**28,
        enable_prefix_caching=False,
        **engine_options(),
    )


def unwatched(worker: Any) -> Callable[[], Any]:
    """To be run in the worker: what takes prismoe away from the model for as long as it lasts."""
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


def ratios(llm: LLM, stock: Callable[[], Any], workload: str, pairs: int) -> list[float]:
    """By pair of turns: the seconds that vLLM alone takes over those of `native`."""
    tokens, answer = WORKLOADS[workload]
    params = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True, detokenize=False)

    def seconds(prompt: Any) -> float:
        start = time.process_time()
        llm.generate(prompt, params, use_tqdm=False)
        return time.process_time() - start

    found = []
    for turn in range(pairs + 1):
        prompt = {"prompt_token_ids": random.Random(turn).choices(range(VOCABULARY), k=tokens)}
        taken: dict[bool, float] = {}
        for is_native in (False, True) if turn % 2 else (True, False):
            with ExitStack() as stack:
                if not is_native:
                    stack.enter_context(stock())
                taken[is_native] = seconds(prompt)
        if turn:  # the first pair warms up
            found.append(taken[False] / taken[True])
    return found


def interval(values: list[float]) -> tuple[float, float, float]:
    """Low end, mean and high end of the mean's 95% interval, for 30 values or more."""
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean, mean + half


def main() -> None:
    """Print the speed of `native` over stock vLLM."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=4, help="each takes 1.2 GB")
    parser.add_argument("--pairs", type=int, default=40)
    args = parser.parse_args()
    if args.pairs < 30:
        parser.error("--pairs: give 30 or more.")
    on_one_core()
    with tempfile.TemporaryDirectory() as folder:
        write_config(Path(folder), args.layers)
        llm = start_engine(Path(folder))
        (stock,) = llm.collective_rpc(unwatched)
        rows = []
        for workload in WORKLOADS:
            low, mean, high = interval(ratios(llm, stock, workload, args.pairs))
            rows.append({"workload": workload, "native over stock": f"{mean:.4f} ({low:.4f}-{high:.4f})"})
        print_table(rows)


if __name__ == "__main__":
    main()
