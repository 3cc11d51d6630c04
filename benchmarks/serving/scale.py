"""Measures the cost of counting, reading and exporting expert load at the sizes of large models.

Run `python -m prismoe.benchmarks.serving.scale` on an otherwise idle host. It loads no model: random routing
goes through the code that a worker and a server run. *write* and *count* are the costs of a step in each
engine, in addition to the model's own work. *read* is an engine's work when the server reads the load, every
few seconds; *total* is the server's work on the answers of all data-parallel engines. *page* is one scrape.
Times are CPU seconds of one core.
"""

import argparse
import asyncio
import os
import pickle
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from prismoe.benchmarks.kernels.bench import print_table
from prismoe.kernels.expert_load import Confidence, LayerShape, ScoredTokens
from prismoe.model_plugins.moe_layer.load_counter import LoadCounter
from prismoe.model_plugins.moe_layer.step import Media, RoutingStep
from prismoe.model_plugins.routing.gate import Gate
from prismoe.model_plugins.worker.settings import MetricsLevel
from prismoe.server.metrics.load_reader import ExpertLoadReader
from prismoe.server.metrics.page import ExpertMetrics
from prismoe.server.metrics.routes import ServedLayer, ServedRouting

MODALITIES = ("text", "image", "video")
GATE = Gate("softmax", True, None, None, 1.0)
MAX_TOKENS = 8192
LEVELS: tuple[MetricsLevel, ...] = ("summary", "full")
STEPS = {"1 token": 1, "64": 64, "2,048": 2048, "8,192": 8192}
TEXT_EVERY = 5
"""Every fifth token of a step is text, the others belong to an image. A single token is text."""


class Size(NamedTuple):
    """A model's MoE layers, and how many data-parallel engines serve it."""

    layers: int
    experts: int
    top_k: int
    engines: int


SIZES = {
    "Qwen3-VL-30B-A3B": Size(48, 128, 8, 1),
    "Qwen3-VL-235B-A22B, 8 engines": Size(94, 128, 8, 8),
    "Kimi-K2.5, 8 engines": Size(61, 384, 8, 8),
}


class Engine:
    """The counters of one engine, and steps with random routing."""

    def __init__(self, size: Size) -> None:
        shape = LayerShape(
            size.experts, size.top_k, scored=size.experts, uses_all_slots=True, has_near_ties=True
        )
        self._layers = size.layers
        self._step = RoutingStep(MODALITIES, [shape] * size.layers, MAX_TOKENS)
        self._counter = LoadCounter(self._step)
        self._counter.as_scored = _with_scores
        logits_TE = torch.randn(MAX_TOKENS, size.experts, generator=torch.Generator().manual_seed(0))
        self._logits_TE = logits_TE
        weights_TK, self._experts_TK = torch.topk(logits_TE.softmax(-1), size.top_k)
        self._weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)

    def write(self, tokens: int) -> None:
        """Write the routers' decisions of one step."""
        is_media_T = torch.arange(tokens) % TEXT_EVERY != 0
        media = [Media("image", int(is_media_T.sum()))] if is_media_T.any() else []
        self._step.tokens.mark(is_media_T, media, tokens)
        confidence = Confidence(self._logits_TE[:tokens])
        for layer in range(self._layers):
            routed = self._experts_TK[:tokens], self._weights_TK[:tokens], None, None
            self._step.write(layer, *routed, confidence)

    def count(self, steps: int) -> None:
        """Count the tokens of this many steps."""
        for _ in range(steps):
            self._counter.add(self._step)

    def read(self) -> dict[str, Any]:
        """The engine's answer to the server."""
        return {"modalities": [*MODALITIES], "layers": [*range(self._layers)], **self._counter.load()}


def _with_scores(written: ScoredTokens) -> ScoredTokens:
    return written._replace(scores_LTE=written.logits_LTE)


class Answers:
    """A client that gives the engines' recorded answers."""

    errored = False

    def __init__(self, answers: Sequence[dict[str, Any]]) -> None:
        self._answers = [*answers]

    async def ask(self, method: str, *args: Any) -> list[Any]:
        return self._answers


def seconds(work: Callable[[], object], times: int) -> float:
    """The median CPU seconds of `times` calls after one that warms up."""
    taken = []
    for _ in range(times + 1):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def step_costs(engine: Engine, times: int) -> dict[str, str]:
    """The milliseconds for writing and counting a step, by its number of tokens."""
    costs = {}
    for name, tokens in STEPS.items():
        write = seconds(partial(engine.write, tokens), times)
        many = MAX_TOKENS // tokens  # as many steps as fill a page, which is then counted
        count = seconds(partial(engine.count, many), times) / many
        costs[name] = f"{write * 1000:.1f} + {count * 1000:.1f}"
    return costs


def routing(size: Size) -> ServedRouting:
    """The server's description of the layers."""
    return ServedRouting(
        source="model",
        in_force="policy",
        switchable=False,
        architecture="made up",
        modalities=[*MODALITIES],
        layers=[
            ServedLayer(
                layer=layer,
                experts=size.experts,
                top_k=size.top_k,
                gate=str(GATE),
                kernel="none",
                policy={"policy": "native"},
                sources={"policy": "model"},
            )
            for layer in range(size.layers)
        ],
        not_supported=[],
    )


def server_costs(size: Size, answer: dict[str, Any], times: int) -> dict[str, str]:
    """The milliseconds and sizes of one reading of all engines and of one scrape."""
    reader = ExpertLoadReader(Answers([answer] * size.engines))
    total = seconds(lambda: asyncio.run(reader.read()), times)
    costs = {"total, ms": f"{total * 1000:.0f}"}
    for level in LEVELS:
        metrics = ExpertMetrics(reader, routing(size), "made-up", level)
        page = seconds(partial(metrics.text, openmetrics=True), times)
        text = metrics.text(openmetrics=True)
        costs[f"{level}: series"] = f"{metrics.series:,}"
        costs[f"{level}: page"] = f"{page * 1000:.0f} ms, {len(text) / 1e6:.2f} MB"
    return costs


def main() -> None:
    """Measure each model size, and print two tables."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example:\n  python -m prismoe.benchmarks.serving.scale --times 7",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--times", type=int, default=7, help="measurements of each, whose median is printed (default: 7)"
    )
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    engines, servers = [], []
    for name, size in SIZES.items():
        engine = Engine(size)
        engines.append({"a step of, write + count in ms": name, **step_costs(engine, args.times)})
        read = seconds(engine.read, args.times)
        answer = engine.read()
        servers.append(
            {
                "a reading and a scrape of": name,
                "read, ms": f"{read * 1000:.0f}",
                "answer, MB": f"{len(pickle.dumps(answer)) / 1e6:.2f}",
                **server_costs(size, answer, args.times),
            }
        )
    print_table(engines)
    print_table(servers)


if __name__ == "__main__":
    main()
