"""What routing costs a served model, from end to end: the same prompts to engines that route differently.

`python -m prismoe.loadtests.routing_cost [MODEL]`: an engine for each routing, each in a process of its own,
all on the same core and taking turns. One of them is the same model on vLLM's own router and experts. It
prints the tokens per second of each as multiples of that one's, for prefill of pictures, prefill of text, and
decode: the median over the rounds, and between which values the middle half of them lies.

Seconds are the process's CPU seconds, on one thread: another job on the machine stretches them far less than
the time of day.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple
from unittest.mock import patch

from PIL import Image
from torch import Tensor

from prismoe.kernels.bench import print_table
from prismoe.model_plugins.bundled import bundled_checkpoint

Routing = Mapping[str, Any]

VLLMS_OWN = "vLLM's own router and experts"
UNCOUNTED = "topk, not counted"
TOP_K: Routing = {"policy": "topk"}
ROUTINGS: dict[str, Routing] = {
    VLLMS_OWN: TOP_K,
    "topk": TOP_K,
    UNCOUNTED: TOP_K,
    "ltdr, 4 experts for tail tokens": {"policy": "ltdr", "tail_experts": 4},
    "ltdr, 2 for tail, 1 for other vision": {"policy": "ltdr", "tail_experts": 2, "head_experts": 1},
}
PICTURES, TEXT_PREFILL, DECODE_1, DECODE_16 = "pictures", "text", "decode, 1 request", "decode, 16 requests"
WORKLOADS = (PICTURES, TEXT_PREFILL, DECODE_1, DECODE_16)
BATCH, TEXT_TOKENS, ANSWER = 16, 400, 64


class Turn(NamedTuple):
    """What one engine did in one round."""

    seconds: float
    experts_seconds: float  # of these, those that the experts ran
    pairs: int  # (token, expert) pairs that routing used


class Stopwatch:
    """The CPU seconds of what it is wound around."""

    seconds = 0.0

    def around(self, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def timed(*step: Tensor) -> Tensor:
            start = time.process_time()
            output = run(*step)
            self.seconds += time.process_time() - start
            return output

        return timed


class RoutedEngine:
    """An engine in a process of its own, which runs a workload when told to."""

    def __init__(self, model: str, name: str, is_eager: bool) -> None:
        context = get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(
            target=_engine_process, args=(other_end, model, name, is_eager), daemon=True
        )
        self._process.start()
        self._pipe.recv()

    def __enter__(self) -> "RoutedEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.join()

    def run(self, workload: str, seed: int) -> "Turn":
        """One turn."""
        self._pipe.send((workload, seed))
        turn: Turn = self._pipe.recv()
        return turn


def _engine_process(pipe: Connection, model: str, name: str, is_eager: bool) -> None:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_OMP_THREADS_BIND": str(min(os.sched_getaffinity(0))),  # one core
    }
    from vllm import LLM

    from prismoe.model_plugins.engine_options import engine_options

    if name == VLLMS_OWN:
        _use_vllms_own()
    if name == UNCOUNTED:
        _count_nothing()
    llm = LLM(
        model,
        max_num_seqs=BATCH,
        kv_cache_memory_bytes=2**28,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        limit_mm_per_prompt={"image": 1},
        seed=0,
        enforce_eager=is_eager,
        **engine_options(ROUTINGS[name]),
    )
    stopwatch = Stopwatch()
    llm.apply_model(partial(_time_experts, stopwatch))
    pipe.send("ready")
    while True:
        pipe.send(_turn(llm, stopwatch, *pipe.recv()))


def _time_experts(stopwatch: Stopwatch, model: Any) -> None:
    for module in model.modules():
        if "run" in vars(module):  # prismoe's experts
            module.run = stopwatch.around(module.run)


def _turn(llm: Any, stopwatch: Stopwatch, workload: str, seed: int) -> Turn:
    from vllm import SamplingParams

    prompts, answer = _prompts(workload, seed, llm.get_tokenizer().vocab_size)
    llm.collective_rpc("prismoe_reset_expert_load")
    stopwatch.seconds = 0.0
    start = time.process_time()
    llm.generate(
        prompts, SamplingParams(max_tokens=answer, ignore_eos=True, detokenize=False), use_tqdm=False
    )
    seconds = time.process_time() - start
    used_LME = llm.collective_rpc("prismoe_expert_load")[0]["expert_tokens"]
    pairs = sum(used for layer in used_LME for modality in layer for used in modality)
    return Turn(seconds, stopwatch.seconds, pairs)


def _prompts(workload: str, seed: int, vocabulary: int) -> tuple[list[Any], int]:
    """The workload's prompts, which differ by seed, and the length of its answers."""
    dice = random.Random(seed)
    if workload == PICTURES:
        return [
            {
                "prompt": "USER: <image>\nWhat is this? ASSISTANT:",
                "multi_modal_data": {"image": picture(dice)},
            }
            for _ in range(BATCH)
        ], 1
    requests, length, answer = {
        TEXT_PREFILL: (BATCH, TEXT_TOKENS, 1),
        DECODE_1: (1, 8, ANSWER),
        DECODE_16: (BATCH, 8, ANSWER),
    }[workload]
    return [
        {"prompt_token_ids": dice.choices(range(8, vocabulary), k=length)} for _ in range(requests)
    ], answer


def picture(dice: random.Random) -> Image.Image:
    """Random coloured squares."""
    return Image.frombytes("RGB", (8, 8), dice.randbytes(8 * 8 * 3)).resize((224, 224))


def _use_vllms_own() -> None:
    """The model's MoE layers without prismoe's router, op and experts."""
    from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    from prismoe.model_plugins import cpu_experts
    from prismoe.model_plugins.moe_llava import moe

    class Method(cpu_experts.GatedExperts):
        """vLLM's, with the made-up gate that its kernel needs for experts that have none."""

        is_monolithic = False

        def apply(self, *args: Any, **kwargs: Any) -> Any:
            return UnquantizedFusedMoEMethod.apply(self, *args, **kwargs)

    class Experts(cpu_experts.CPUExperts):
        def _get_quant_method(self, prefix: str, quant_config: Any, moe_config: Any) -> Any:
            return Method(moe_config)

    def factory(router: Any, **kwargs: Any) -> Any:
        kwargs |= {"renormalize": router.policy.norm_topk_prob, "routed_experts_cls": Experts}
        return FusedMoEFactory(**kwargs)

    cpu_experts.WIDE = 2**31  # vLLM has no other form than gated ones
    patch.object(moe, "FusedMoEFactory", factory).start()


def _count_nothing() -> None:
    from prismoe.kernels.kept_steps import KeptSteps
    from prismoe.model_plugins import router

    patch.object(router, "count_expert_load", lambda *load: None).start()
    patch.object(KeptSteps, "keep", lambda *load: None).start()


Rounds = list[dict[str, Turn]]


def take_turns(engines: Mapping[str, RoutedEngine], workload: str, rounds: int) -> Rounds:
    """What each engine did in each round."""
    turns = []
    order = list(engines)
    for seed in range(-1, rounds):  # the first warms up
        order = order[1:] + order[:1]
        turn = {name: engines[name].run(workload, seed) for name in order}
        if seed >= 0:
            turns.append(turn)
    return turns


def speed(rounds: Rounds, name: str, base: str) -> str:
    """How many times as fast as `base`: the median, and the bounds of the middle half."""
    low, middle, high = statistics.quantiles(
        [turn[base].seconds / turn[name].seconds for turn in rounds], n=4, method="inclusive"
    )
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def experts_used(rounds: Rounds, name: str) -> float:
    """The (token, expert) pairs that it used, over those of top-k."""
    return sum(turn[name].pairs for turn in rounds) / sum(turn["topk"].pairs for turn in rounds)


def experts_share(rounds: Rounds) -> float:
    """The share of its seconds that top-k spends in the experts."""
    return statistics.median(turn["topk"].experts_seconds / turn["topk"].seconds for turn in rounds)


def predicted(rounds: Rounds, name: str) -> float:
    """Its speed over top-k's, if just the experts' seconds grew with the experts used."""
    return 1 / (1 + experts_share(rounds) * (experts_used(rounds, name) - 1))


def main() -> None:
    """Print the speeds, and what the experts used predict."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default=str(bundled_checkpoint()))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--enforce-eager", action="store_true", help="as `prismoe serve` does on CPU")
    args = parser.parse_args()
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(RoutedEngine(args.model, name, args.enforce_eager)) for name in ROUTINGS
        }
        results = {workload: take_turns(engines, workload, args.rounds) for workload in WORKLOADS}
    pairs = [(name, VLLMS_OWN) for name in ROUTINGS if name != VLLMS_OWN] + [("topk", UNCOUNTED)]
    print_table(
        [
            {"speed of": name, "over": base}
            | {workload: speed(rounds, name, base) for workload, rounds in results.items()}
            for name, base in pairs
        ]
    )
    print("Speed over top-k's, and what the experts used predict, by the share of its seconds they take:\n")
    print_table(
        [
            {
                "routing": name,
                "workload": workload,
                "experts' share": experts_share(rounds),
                "experts used": experts_used(rounds, name),
                "predicted": predicted(rounds, name),
                "measured": speed(rounds, name, "topk"),
            }
            for workload, rounds in results.items()
            for name in ROUTINGS
            if name.startswith("ltdr")
        ]
    )


if __name__ == "__main__":
    main()
