"""Measures the cost of routing on CPU, over whole requests.

Run `python -m prismoe.benchmarks.serving.routing_cost [MODEL]` on an otherwise idle host. It sends the same
prompts to the same model under different routings and under vLLM's own router and experts. It prints the
speed of each routing over that of another, for prefill of pictures, prefill of text, and decode: the median
over the rounds, and the bounds of their middle half. vLLM's own routing is measured twice; the difference
between the two is noise.

Two engines that do the same work differ by more than routing costs. So the routings take turns in one
engine, in this process and on one core. The engine is eager, like `prismoe serve` on CPU, since the routers
in a compiled graph can't be swapped. Seconds are the process's CPU seconds, which other jobs on the machine
affect far less than wall-clock time.
"""

import argparse
import ctypes
import json
import os
import random
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from PIL import Image
from vllm import LLM, SamplingParams

from prismoe.benchmarks.kernels.bench import Row, print_table
from prismoe.benchmarks.serving.swapped_routing import TOP_K, UNCOUNTED, VLLMS_OWN, routings
from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.worker.engine_options import engine_options
from prismoe.server.errors import sentence

BATCH, TEXT_TOKENS, ANSWER = 16, 128, 32
WORKLOADS = {  # requests, tokens of a prompt, tokens of an answer
    "pictures": (BATCH, None, 1),
    "text": (BATCH, TEXT_TOKENS, 1),
    "decode, 1 request": (1, 8, ANSWER),
    "decode, 16 requests": (BATCH, 8, ANSWER),
}
TURNS = 4
"""Turns of each routing in a round. They are short, so that noise affects all routings alike."""


class RoutingSpeed(TypedDict):
    """The measurement of one routing with a workload."""

    seconds: list[float]  # of each round
    experts_seconds: float  # of all rounds: the time in prismoe's experts
    pairs: int  # (token, expert) pairs that prismoe's routers chose


Measurement = Mapping[str, RoutingSpeed]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def on_one_core() -> None:
    """Make engines run in this process and on one core from now on."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # `collective_rpc` takes functions
        "VLLM_CPU_OMP_THREADS_BIND": str(min(os.sched_getaffinity(0))),
    }
    # Keep freed memory: giving it back causes page faults later, in whichever routing runs then.
    libc = ctypes.CDLL(None)
    libc.mallopt(M_TRIM_THRESHOLD, 2**30)
    libc.mallopt(M_MMAP_THRESHOLD, 2**25)


def start_engine(model: str) -> LLM:
    """An engine in this process and on one core."""
    on_one_core()
    return LLM(
        model,
        max_num_seqs=BATCH,
        kv_cache_memory_bytes=2**28,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        limit_mm_per_prompt={"image": 1},
        seed=0,
        enforce_eager=True,
        **engine_options({"policy": "ltdr", "tail_experts": 4}),  # includes what the other routings need
    )


def measure(llm: LLM, workload: str, rounds: int) -> Measurement:
    """Measure each routing with the workload.

    Raises ValueError if vLLM has no experts to compare the model's with.
    """
    (ways,) = llm.apply_model(routings)
    vocabulary = llm.get_tokenizer().vocab_size
    seconds = {name: [0.0] * rounds for name in ways}
    for turn in range(rounds * TURNS):
        prompts, params = requests(workload, turn, vocabulary)
        order = random.Random(turn // 2).sample(list(ways), len(ways))
        for name in reversed(order) if turn % 2 else order:
            with ways[name].in_force():
                start = time.process_time()
                llm.generate(prompts, params, use_tqdm=False)
                seconds[name][turn // TURNS] += time.process_time() - start
    return {
        name: {"seconds": seconds[name], "experts_seconds": way.experts_seconds, "pairs": way.pairs}
        for name, way in ways.items()
    }


def requests(workload: str, seed: int, vocabulary: int) -> tuple[list[Any], SamplingParams]:
    """The workload's prompts, which depend on the seed, and the sampling parameters of their answers."""
    dice = random.Random(seed)
    number, tokens, answer = WORKLOADS[workload]
    prompts: list[Any] = [
        {"prompt_token_ids": dice.choices(range(8, vocabulary), k=tokens)} if tokens else question(dice)
        for _ in range(number)
    ]
    return prompts, SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True, detokenize=False)


def question(dice: random.Random) -> dict[str, Any]:
    """A question about a picture of random coloured squares."""
    squares = Image.frombytes("RGB", (8, 8), dice.randbytes(8 * 8 * 3)).resize((224, 224))
    return {"prompt": "USER: <image>\nWhat is this? ASSISTANT:", "multi_modal_data": {"image": squares}}


def speed(measured: Measurement, name: str, base: str) -> str:
    """The speed over that of `base`: the median, and the bounds of the middle half."""
    rounds = zip(measured[name]["seconds"], measured[base]["seconds"], strict=True)
    ratios = [base_seconds / seconds for seconds, base_seconds in rounds]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def prediction(measured: Measurement, name: str) -> Row:
    """A routing's speed over top-k's: measured, and predicted if only the experts' time grows with uses."""
    topk = measured[TOP_K]
    share = topk["experts_seconds"] / sum(topk["seconds"])
    used = measured[name]["pairs"] / topk["pairs"]
    return {
        "experts' share": share,
        "experts used": used,
        "predicted": f"{1 / (1 + share * (used - 1)):.3f}",
        "measured": speed(measured, name, TOP_K),
    }


def main() -> None:
    """Print the measured speeds, and the predictions from the experts used."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example:\n  python -m prismoe.benchmarks.serving.routing_cost --rounds 12",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        nargs="?",
        default=str(bundled_checkpoint()),
        help="folder of the checkpoint (default: the bundled one)",
    )
    parser.add_argument(
        "--rounds", type=int, default=36, help="rounds; 36 of the bundled model take 6 minutes (default: 36)"
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds: give 2 or more.")
    try:
        llm = start_engine(args.model)
        for rounds in (1, args.rounds):  # the first warms up
            results = {workload: measure(llm, workload, rounds) for workload in WORKLOADS}
    except ValueError as error:
        parser.error(sentence(error))
    names = next(iter(results.values()))
    pairs = [(name, VLLMS_OWN) for name in names if name != VLLMS_OWN] + [(TOP_K, UNCOUNTED)]
    print_table(
        [
            {"speed of": name, "over": base}
            | {workload: speed(measured, name, base) for workload, measured in results.items()}
            for name, base in pairs
        ]
    )
    print("Speed over top-k's, measured and predicted from the experts used and their share of the time:\n")
    print_table(
        [
            {"routing": name, "workload": workload} | prediction(measured, name)
            for workload, measured in results.items()
            for name in names
            if name.startswith("ltdr")
        ]
    )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
