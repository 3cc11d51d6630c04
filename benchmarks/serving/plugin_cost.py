"""Measures the cost of prismoe's plugin under vLLM's own API server, over HTTP on CPU.

Run `python -m prismoe.benchmarks.serving.plugin_cost` on an otherwise idle host. Two servers of
`native_cost`'s model run at the same time, one with `VLLM_PLUGINS=prismoe` and one without. A pair is the
same prompt to both, one after the other; which comes first alternates. The program prints the speed with the
plugin over the speed without it: the median over the pairs and its 95% interval. The time is that until the
last token.
"""

import argparse
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from prismoe.benchmarks.kernels.bench import print_table
from prismoe.benchmarks.paths import REPOSITORY
from prismoe.benchmarks.serving.native_cost import VOCABULARY, median_interval, write_config
from prismoe.loadtests.local_server import serving

WORKLOADS = {"128 tokens in, 1 out": (128, 1), "8 tokens in, 8 out": (8, 8)}
FOLDER = REPOSITORY / "build" / "plugin_cost"
"""The folder of the model's config and the servers' logs."""
OPTIONS = (
    *("--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "bfloat16", "--enforce-eager"),
    *("--max-model-len", "1024", "--max-num-seqs", "4", "--kv-cache-memory-bytes", str(2**28)),
    *("--no-enable-prefix-caching", "--enable-scale-out"),
)


@contextmanager
def client_of(plugins: str) -> Iterator[httpx.Client]:
    """Start vLLM's server with these plugins, and yield a client of it."""
    environment = {
        "VLLM_PLUGINS": plugins,
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": str(min(os.sched_getaffinity(0))),
    }
    arguments, log = ["--model", str(FOLDER), *OPTIONS], FOLDER / f"{plugins or 'without'}.log"
    with (
        serving("vllm.entrypoints.openai.api_server", arguments, log, environment) as (url, _),
        httpx.Client(base_url=url, timeout=120) as http,
    ):
        yield http


def seconds(http: httpx.Client, prompt: list[int], answer: int) -> float:
    """Send a prompt, and return the seconds until the last token of the answer."""
    params = {"temperature": 0, "max_tokens": answer, "ignore_eos": True, "detokenize": False}
    start = time.perf_counter()
    http.post(
        "/inference/v1/generate", json={"token_ids": prompt, "sampling_params": params}
    ).raise_for_status()
    return time.perf_counter() - start


def main() -> None:
    """Print the speed with the plugin over that without it."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example:\n  python -m prismoe.benchmarks.serving.plugin_cost --layers 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--layers", type=int, default=3, help="layers of the model, 2.4 GB each (default: 3)")
    parser.add_argument("--pairs", type=int, default=150, help="pairs of requests (default: 150)")
    args = parser.parse_args()
    if args.pairs < 30:
        parser.error("--pairs: give 30 or more.")
    draw = random.Random(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_config(FOLDER, args.layers)
    with client_of("") as without, client_of("prismoe") as plugged:
        rows = []
        for workload, (tokens, answer) in WORKLOADS.items():
            ratios = []
            for pair in range(args.pairs + 1):
                prompt = draw.choices(range(VOCABULARY), k=tokens)
                order = (without, plugged) if pair % 2 else (plugged, without)
                taken = {http: seconds(http, prompt, answer) for http in order}
                if pair:  # the first pair warms up
                    ratios.append(taken[without] / taken[plugged])
            low, median, high = median_interval(ratios)
            speed = f"{median:.4f} ({low:.4f}-{high:.4f})"
            rows.append({"workload": workload, "pairs": len(ratios), "with over without": speed})
    print_table(rows)


if __name__ == "__main__":
    main()
