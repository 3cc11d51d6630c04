"""Measures how much faster prefill gets on CPU when experts are skipped, at the sizes of Qwen3-VL-30B-A3B.

Run `python -m prismoe.benchmarks.serving.skip_gain` on an otherwise idle host. The model is that of
`native_cost`, with random weights. Four fifths of a prompt's tokens are treated as vision tokens, and a share
of their expert uses is skipped. Each vision token keeps the best of its chosen experts; if the number to keep
is not whole, it alternates between the whole numbers below and above. One eager engine, in this process and
on one core, alternates steps with `native` and steps with experts skipped. A pair is two consecutive steps.

The program prints the speed over that of `native` for the MoE layers and for the whole prefill: the median
over the pairs and its 95% interval. It also prints a prediction. For the MoE layers this is the ratio of all
expert uses to those that remain; for the prefill only the MoE layers' share of the time shrinks by that
ratio. "if only read" is the ratio if the MoE layers only read their weights. Seconds are the process's CPU
seconds. With `--json` each case is written as soon as it is measured, and cases in the file are not measured
again.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from vllm import LLM

from prismoe.benchmarks.kernels.bench import print_table
from prismoe.benchmarks.serving.native_cost import add_prompt, median_interval, start_engine, write_config
from prismoe.benchmarks.serving.routing_cost import on_one_core
from prismoe.kernels.routing import top_experts, use_first
from prismoe.loadtests.plots import lines
from prismoe.model_plugins.moe_layer.model_routing import runners_of
from prismoe.model_plugins.routing.policy import RouterInputs, Routing

TOKENS = (512, 2048, 8192)
SKIPPED = (0.0, 0.3, 0.6, 0.88)
TEXT_EVERY = 5
"""Every fifth token is text, and keeps all of its experts."""
MOST_OPERATIONS = 12
SKIPPING = {"policy": "dual_threshold"}
"""Any policy that leaves slots unused works; the benchmark replaces its choice."""


class Pair(NamedTuple):
    """The seconds of two steps: those of the MoE layers, and those of the whole step."""

    native_layers: float
    native_step: float
    layers: float
    step: float


def kept_uses(num_tokens: int, top_k: int, skipped: float) -> Tensor:
    """How many experts each token keeps, `[T]`: on average `top_k * (1 - skipped)` for a vision token."""
    places_T = torch.arange(num_tokens)
    vision_T = places_T - places_T // TEXT_EVERY - 1
    kept = top_k * (1 - skipped)
    kept_T = ((vision_T + 1) * kept).floor() - (vision_T * kept).floor()
    return torch.where(places_T % TEXT_EVERY == 0, top_k, kept_T.long())


def keep(counts_T: Tensor, top_k: int, step: RouterInputs) -> Routing:
    """The first `counts_T` experts of the gate's own choice, with their weights."""
    confidence = step.confidence
    count_T = counts_T[: len(step.logits_TE)]
    experts_TA, weights_TA = top_experts(confidence.logits_TE, top_k, True)
    return Routing.without_tail(*use_first(experts_TA, weights_TA, count_T), count_T, confidence)


class Bench:
    """Switches the model between both ways of running a step. It is created in the worker."""

    def __init__(self, worker: Any) -> None:
        self.routing = worker.routing
        self.runners: list[Any] = runners_of(worker.model_runner.get_model())
        self.top_k: int = self.runners[0].routed_experts.top_k
        self.layer_seconds = 0.0
        for runner in self.runners:
            runner.register_forward_pre_hook(self._begin)
            runner.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self._start = time.process_time()

    def _end(self, *_: object) -> None:
        self.layer_seconds += time.process_time() - self._start

    @contextmanager
    def native(self) -> Iterator[None]:
        """Use vLLM's own routers and kernels in the block."""
        with ExitStack() as stack:
            for runner in self.runners:
                kernel = runner.routed_experts.quant_method.moe_kernel.fused_experts
                for owner, name in ((runner.router, "_compute_routing"), (kernel, "apply")):
                    own = getattr(type(owner), name).__get__(owner)
                    stack.enter_context(patch.object(owner, name, own))
            yield

    @contextmanager
    def skipping(self, counts_T: Tensor) -> Iterator[None]:
        """Use only the first `counts_T` of each token's experts in the block."""
        with ExitStack() as stack:
            for layer in self.routing.routers.values():
                stack.enter_context(patch.object(layer, "_route", partial(keep, counts_T, self.top_k)))
            yield

    def floor(self) -> float:
        """The seconds for reading the weights of all MoE layers once."""
        weights = [
            weight.data.flatten().view(torch.int64)
            for runner in self.runners
            for weight in (runner.routed_experts.w13_weight, runner.routed_experts.w2_weight)
        ]
        taken = []
        for _ in range(3):
            start = time.process_time()
            for weight in weights:
                weight.sum()
            taken.append(time.process_time() - start)
        return min(taken)


def measure(llm: LLM, bench: Bench, num_tokens: int, skipped: float, pairs: int) -> list[Pair]:
    """Measure pairs of steps; which of the two comes first alternates."""
    draw = random.Random(num_tokens)
    counts_T = kept_uses(num_tokens, bench.top_k, skipped)
    found = []
    for pair in range(pairs + 1):
        taken: dict[bool, tuple[float, float]] = {}
        for is_native in (False, True) if pair % 2 else (True, False):
            add_prompt(llm, draw, num_tokens)
            with bench.native() if is_native else bench.skipping(counts_T):
                bench.layer_seconds, start = 0.0, time.process_time()
                llm.llm_engine.step()
                taken[is_native] = bench.layer_seconds, time.process_time() - start
        if pair:  # the first pair warms up
            found.append(Pair(*taken[True], *taken[False]))
    return found


def profile(llm: LLM, bench: Bench, num_tokens: int, skipped: float) -> list[dict[str, Any]]:
    """The PyTorch operations whose own time in a step changes most when experts are skipped."""
    counts_T = kept_uses(num_tokens, bench.top_k, skipped)
    taken: dict[bool, dict[str, float]] = {}
    for is_native in (True, False):
        add_prompt(llm, random.Random(0), num_tokens)
        with bench.native() if is_native else bench.skipping(counts_T), torch.profiler.profile() as profiler:
            llm.llm_engine.step()
        taken[is_native] = {one.key: one.self_cpu_time_total / 1000 for one in profiler.key_averages()}
    native, skipping = taken[True], taken[False]
    gained = {name: native.get(name, 0.0) - skipping.get(name, 0.0) for name in {**native, **skipping}}
    return [
        {
            "operation": name,
            "native, ms": native.get(name, 0.0),
            f"{skipped:.0%} skipped, ms": skipping.get(name, 0.0),
        }
        for name in sorted(gained, key=lambda name: -abs(gained[name]))[:MOST_OPERATIONS]
    ]


def row(
    pairs: Sequence[Pair], num_layers: int, num_tokens: int, skipped: float, top_k: int, floor: float
) -> dict[str, Any]:
    """The row of one case in the table and the JSON."""
    uses = int(kept_uses(num_tokens, top_k, skipped).sum())
    predicted = num_tokens * top_k / uses
    layer_share = statistics.median(pair.native_layers / pair.native_step for pair in pairs)
    native_layers = statistics.median(pair.native_layers for pair in pairs)
    return {
        "num_layers": num_layers,
        "tokens": num_tokens,
        "skipped": skipped,
        "pairs": len(pairs),
        "layers": median_interval([pair.native_layers / pair.layers for pair in pairs]),
        "layers_predicted": predicted,
        "layers_floor": native_layers / floor,
        "prefill": median_interval([pair.native_step / pair.step for pair in pairs]),
        "prefill_predicted": 1 / (1 - layer_share + layer_share / predicted),
        "native_seconds": statistics.median(pair.native_step for pair in pairs),
    }


def missing(
    rows: Sequence[dict[str, Any]], num_layers: int, tokens: Sequence[int]
) -> list[tuple[int, float]]:
    """The cases that have no row yet: the number of tokens, and the share that is skipped."""
    have = {(one["num_layers"], one["tokens"], one["skipped"]) for one in rows}
    cases = [(num_tokens, skipped) for num_tokens in tokens for skipped in SKIPPED]
    return [case for case in cases if (num_layers, *case) not in have]


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows in the form that is printed."""
    return [
        {
            "decoder layers": one["num_layers"],
            "tokens": one["tokens"],
            "skipped": f"{one['skipped']:.0%}",
            "pairs": one["pairs"],
            "MoE layers": "{1:.2f} ({0:.2f}-{2:.2f})".format(*one["layers"]),
            "predicted": f"{one['layers_predicted']:.2f}",
            "if only read": f"{one['layers_floor']:.1f}",
            "prefill": "{1:.2f} ({0:.2f}-{2:.2f})".format(*one["prefill"]),
            "predicted ": f"{one['prefill_predicted']:.2f}",
            "native, s": f"{one['native_seconds']:.2f}",
        }
        for one in rows
    ]


def plot(of_size: Sequence[dict[str, Any]]) -> str:
    """An SVG of the time over `native`'s, by the share of vision tokens' expert uses that is skipped."""
    skipped = [f"{one['skipped']:.0%}" for one in of_size]
    left = {
        "MoE layers": [1 / one["layers"][1] for one in of_size],
        "MoE layers, predicted": [1 / one["layers_predicted"] for one in of_size],
        "prefill": [1 / one["prefill"][1] for one in of_size],
        "prefill, predicted": [1 / one["prefill_predicted"] for one in of_size],
    }
    return lines(
        f"Time over native's, prefill of {of_size[0]['tokens']} tokens",
        "vision's uses of experts skipped",
        {name: list(zip(skipped, values, strict=True)) for name, values in left.items()},
    )


def main() -> None:
    """Measure, print a table, and write the files of --json and --plot."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example:\n  python -m prismoe.benchmarks.serving.skip_gain --layers 3 --json skip-gain.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--layers", type=int, default=3, help="layers of the model, 1.2 GB each (default: 3)")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=TOKENS, help=f"prompt lengths (default: {TOKENS})"
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=12,
        help="pairs of steps of 2048 tokens; longer prompts have fewer (default: 12)",
    )
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--plot", type=Path, help="SVG file to draw the last of the prompt lengths to")
    parser.add_argument("--profile", action="store_true", help="print what changes most in the last case")
    args = parser.parse_args()
    on_one_core()
    rows = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    cases = missing(rows, args.layers, args.tokens)
    if cases or args.profile:
        with tempfile.TemporaryDirectory() as folder:
            longest = max(args.tokens) + 2
            write_config(Path(folder), args.layers, longest)
            llm = start_engine(Path(folder), SKIPPING, longest)
            (bench,) = llm.collective_rpc(Bench)
            floor = bench.floor()
            for num_tokens, skipped in cases:
                pairs = max(3, min(args.pairs, args.pairs * 2048 // num_tokens))
                measured = measure(llm, bench, num_tokens, skipped, pairs)
                rows.append(row(measured, args.layers, num_tokens, skipped, bench.top_k, floor))
                if args.json:
                    args.json.write_text(json.dumps(rows, indent=2))
            if args.profile:
                print_table(profile(llm, bench, args.tokens[-1], SKIPPED[-1]))
    print_table(table(rows))
    if args.plot:
        size = args.layers, args.tokens[-1]
        args.plot.write_text(plot([one for one in rows if (one["num_layers"], one["tokens"]) == size]))


if __name__ == "__main__":
    main()
