"""What is compared, and its measurement: each system is served, loaded, and noted in a file of its own."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from prismoe.loadtests.bench import Bench
from prismoe.loadtests.local_server import serving
from prismoe.loadtests.results import Phase
from prismoe.loadtests.scenarios import Scenario
from prismoe.loadtests.target import Target, find
from prismoe.loadtests.traffic import client
from prismoe.model_plugins.bundled import bundled_checkpoint
from tests.performance.checkpoints import SMALL, Shape, moe_llava, shape_of_size, twin
from tests.performance.plain_generation import PlainGenerator, tokens_per_second

TEXT, ANSWER, MANY = 64, 64, 16
REPEATS = 3
TOPK = {"policy": "topk"}
HALF_A_BILLION = shape_of_size()


class Measured(BaseModel):
    """One system's figures."""

    phases: list[Phase] = []
    plain: dict[str, float] = {}
    """Tokens a second of the sequential loop, by what was asked."""


@dataclass(frozen=True)
class System:
    """Something that answers requests."""

    name: str
    kind: str
    """prismoe, vllm (with a model of its own) or pytorch (the sequential loop)."""
    shape: Shape | None = None
    """None for the bundled model."""
    routing: dict[str, Any] | None = field(default=None, hash=False)
    curves: bool = False
    """Whether to measure how its cost grows, too."""

    @property
    def requests(self) -> int:
        """At sixteen at once; a small model needs more for as long a measurement."""
        return 48 if self.shape == HALF_A_BILLION else 160


POLICIES: dict[str, dict[str, Any]] = {
    "ltdr": {"policy": "ltdr"},
    "gmm": {"policy": "gmm", "top_k": 2},
    "dual_threshold": {"policy": "dual_threshold", "text_threshold": 0.45, "vision_threshold": 0.45},
    "entropy": {"policy": "entropy", "norm_topk_prob": True, "min_experts": 1, "max_experts": 4},
}
SYSTEMS = [
    System("bundled-pytorch", "pytorch"),
    System("bundled-topk", "prismoe", routing=TOPK, curves=True),
    System("bundled-ltdr", "prismoe"),
    System("small-vllm", "vllm", SMALL),
    System("small-topk", "prismoe", SMALL, TOPK),
    System("large-pytorch", "pytorch", HALF_A_BILLION, TOPK),
    System("large-vllm", "vllm", HALF_A_BILLION),
    System("large-topk", "prismoe", HALF_A_BILLION, TOPK, curves=True),
    *(
        System(f"large-{name}", "prismoe", HALF_A_BILLION, routing, curves=name == "ltdr")
        for name, routing in POLICIES.items()
    ),
    *(
        System(f"experts-{experts}", "prismoe", shape_of_size(experts, layers=4), TOPK)
        for experts in (4, 8, 16, 32)
    ),
]


def measure(system: System, folder: Path) -> Measured:
    """Measure one system; its checkpoint is kept in the folder."""
    if system.kind == "pytorch":
        return _measure_loop(system, folder)
    with _server(system, folder) as url:
        return asyncio.run(_measure_server(system, url, folder))


def _checkpoint(system: System, folder: Path) -> Path:
    if system.shape is None:
        return bundled_checkpoint()
    if system.kind == "vllm":
        return twin(system.shape, folder / f"{system.name}-checkpoint")
    routing = system.routing or TOPK
    own = "gmm" if routing["policy"] == "gmm" else "topk"
    name = f"{system.shape.hidden}-{system.shape.layers}-{system.shape.experts}-{own}"
    return moe_llava(system.shape, routing if own == "gmm" else TOPK, folder / "checkpoints" / name)


@contextmanager
def _server(system: System, folder: Path) -> Iterator[str]:
    checkpoint, log = _checkpoint(system, folder), folder / f"{system.name}.log"
    dtype = "float32" if system.shape is None else system.shape.dtype
    options = ["--dtype", dtype, "--max-model-len", "2048", "--kv-cache-memory-bytes", "1G"]
    if system.kind == "vllm":
        stock = ["--enforce-eager", "--load-format", "dummy", "--model", str(checkpoint)]
        with serving("vllm.entrypoints.openai.api_server", [*stock, *options], log, {"VLLM_PLUGINS": ""}) as (
            url,
            _,
        ):
            yield url
        return
    routing = [] if system.routing is None else ["--routing", json.dumps(system.routing)]
    with serving("prismoe.server.cli", ["serve", str(checkpoint), *routing, *options], log) as (url, _):
        yield url


async def _measure_server(system: System, url: str, folder: Path) -> Measured:
    if system.kind == "vllm":
        tokenizer = str(folder / f"{system.name}-checkpoint")
        target = Target(
            url=url,
            model=tokenizer,
            tokenizer=tokenizer,
            image_tokens=0,
            tokens_beside_image=0,
            template_tokens=0,
        )
    else:
        target = await find(url, None)
    async with client(url) as session:
        bench = Bench(target, session, ["ttft:10000"], folder / "bench.log")
        await bench.run(_asking("warm-up", 8, MANY))
        bench.phases.clear()
        for scenario in scenarios(system):
            await bench.run(scenario)
    return Measured(phases=bench.phases)


def scenarios(system: System) -> list[Scenario]:
    """What a system is asked. A name that comes often is measured as often."""
    asked = []
    for seed in range(REPEATS):
        asked += [
            _asking("text at 1", 6, 1, seed=seed),
            _asking(f"text at {MANY}", system.requests, MANY, seed=seed),
        ]
    if system.kind == "prismoe" and not system.name.startswith("experts"):
        asked += [
            _asking("image at 1", 6, 1, images=1),
            _asking(f"image at {MANY}", system.requests, MANY, images=1),
        ]
    if system.curves:
        asked += [_asking(f"at once {n}", max(6, 3 * n), n) for n in (1, 2, 4, 8, 16, 32)]
        asked += [_asking(f"images {n}", 6, 1, images=n, answer_tokens=1) for n in (0, 1, 2, 4)]
        asked += [
            _asking(f"tokens {n}", 6, 1, text_tokens=n, answer_tokens=1) for n in (64, 128, 256, 512, 1024)
        ]
    return asked


def _asking(name: str, requests: int, at_once: int, **changes: Any) -> Scenario:
    settings = {"text_tokens": TEXT, "answer_tokens": ANSWER}
    return Scenario.model_validate(
        settings | {"name": name, "requests": requests, "at_once": at_once} | changes
    )


def _measure_loop(system: System, folder: Path) -> Measured:
    dtype = torch.float32 if system.shape is None else getattr(torch, system.shape.dtype)
    generator = PlainGenerator(_checkpoint(system, folder), dtype)
    side = generator.tower.config.image_size
    return Measured(
        plain={
            "text": tokens_per_second(generator, 6, TEXT, ANSWER, 0, side),
            "image": tokens_per_second(generator, 6, TEXT, ANSWER, 1, side),
        }
    )
