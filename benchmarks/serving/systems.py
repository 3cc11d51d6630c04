"""The systems that are compared, and how each is served, loaded and measured."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from prismoe.benchmarks.serving.checkpoints import SMALL, Shape, moe_llava, shape_of_size, twin
from prismoe.benchmarks.serving.plain_generation import PlainGenerator, tokens_per_second
from prismoe.loadtests.bench import Bench
from prismoe.loadtests.local_server import serving
from prismoe.loadtests.results import Phase
from prismoe.loadtests.scenarios import Scenario
from prismoe.loadtests.target import Target, find
from prismoe.loadtests.traffic import client
from prismoe.model_plugins.files.bundled import bundled_checkpoint

TEXT, ANSWER, MANY = 64, 64, 16
TURNS = 4
AT_ONCE, IMAGES, TOKENS = (1, 2, 4, 8, 16, 32), (0, 1, 2, 4), (64, 128, 256, 512, 1024)
OBJECTIVE = ["ttft:10000"]
ENGINE = ("--max-model-len", "2048", "--kv-cache-memory-bytes", "1G")
TOPK = {"policy": "topk"}
HALF_A_BILLION = shape_of_size()


class SystemSpeed(BaseModel):
    """One system's figures."""

    phases: list[Phase] = []
    plain: dict[str, float] = {}
    """Tokens a second of the sequential loop, by kind of request."""


@dataclass(frozen=True)
class System:
    """Something that answers requests."""

    name: str
    kind: str
    """prismoe, pytorch (the sequential loop), or beside-vllm (prismoe and vLLM's twin take turns)."""
    shape: Shape | None = None
    """None for the bundled model."""
    routing: dict[str, Any] | None = field(default=None, hash=False)
    curves: bool = False
    """Whether to measure how its cost grows with requests, images and tokens."""

    @property
    def requests(self) -> int:
        """The number of requests with sixteen at once. A fast model needs more for an equally long run."""
        return 32 if self.shape == HALF_A_BILLION else 160


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
    System("bundled-entropy", "prismoe", routing=POLICIES["entropy"]),
    System("small-beside-vllm", "beside-vllm", SMALL, TOPK),
    System("large-pytorch", "pytorch", HALF_A_BILLION, TOPK),
    System("large-beside-vllm", "beside-vllm", HALF_A_BILLION, TOPK),
    System("large-topk", "prismoe", HALF_A_BILLION, TOPK, curves=True),
    *(System(f"large-{name}", "prismoe", HALF_A_BILLION, routing) for name, routing in POLICIES.items()),
    *(
        System(f"experts-{experts}", "prismoe", shape_of_size(experts, layers=4), TOPK)
        for experts in (4, 8, 32)
    ),
]


def measure(system: System, folder: Path) -> SystemSpeed:
    """Measure one system; its checkpoint is kept in the folder."""
    if system.kind == "pytorch":
        return _measure_loop(system, folder)
    with _prismoe(system, folder) as url:
        if system.kind == "prismoe":
            return asyncio.run(_measure_server(system, url, folder))
        assert system.shape is not None
        mixtral = twin(system.shape, folder / "checkpoints" / f"{system.name}-twin")
        with _vllm(mixtral, system.shape, folder) as stock:
            return asyncio.run(_measure_in_turns(system, url, stock, mixtral, folder))


def _checkpoint(system: System, folder: Path) -> Path:
    if system.shape is None:
        return bundled_checkpoint()
    routing = system.routing or TOPK
    own = routing if routing["policy"] == "gmm" else TOPK  # the checkpoint has gmm's parameters
    name = f"{system.shape.hidden}-{system.shape.layers}-{system.shape.experts}-{own['policy']}"
    return moe_llava(system.shape, own, folder / "checkpoints" / name)


@contextmanager
def _prismoe(system: System, folder: Path) -> Iterator[str]:
    routing = [] if system.routing is None else ["--routing", json.dumps(system.routing)]
    dtype = "float32" if system.shape is None else system.shape.dtype
    options = [*routing, "--dtype", dtype, "--expert-load-interval", "1", *ENGINE]
    arguments = ["serve", str(_checkpoint(system, folder)), *options]
    with serving("prismoe.server.commands.cli", arguments, folder / f"{system.name}.log") as (url, _):
        yield url


@contextmanager
def _vllm(checkpoint: Path, shape: Shape, folder: Path) -> Iterator[str]:
    arguments = [
        "--model",
        str(checkpoint),
        "--load-format",
        "dummy",
        "--enforce-eager",
        "--dtype",
        shape.dtype,
    ]
    log = folder / f"{checkpoint.name}.log"
    without_plugins = {"VLLM_PLUGINS": ""}
    with serving("vllm.entrypoints.openai.api_server", [*arguments, *ENGINE], log, without_plugins) as (
        url,
        _,
    ):
        yield url


async def _measure_in_turns(
    system: System, url: str, stock_url: str, mixtral: Path, folder: Path
) -> SystemSpeed:
    """Send prompts of the same length to both; which comes first alternates."""
    stock = Target(
        url=stock_url,
        model=str(mixtral),
        tokenizer=str(mixtral),
        image_tokens=0,
        tokens_beside_image=0,
        template_tokens=0,
    )
    log = folder / "bench.log"
    async with client(url) as session, client(stock_url) as stock_session:
        own = await find(url, None)
        # The twin's chat template adds no tokens.
        text_tokens = {"prismoe": TEXT, "vllm": TEXT + own.template_tokens}
        benches = {
            "prismoe": Bench(own, session, OBJECTIVE, log),
            "vllm": Bench(stock, stock_session, OBJECTIVE, log),
        }
        for bench in benches.values():
            await bench.run(_scenario("warm-up", 8, MANY, seed=99))
            bench.phases.clear()
        for turn in range(TURNS):
            for name in sorted(benches, reverse=bool(turn % 2)):
                same: dict[str, Any] = {"seed": turn, "text_tokens": text_tokens[name]}
                await benches[name].run(_scenario(f"{name} text at 1", 4, 1, **same))
                await benches[name].run(_scenario(f"{name} text at {MANY}", system.requests, MANY, **same))
    prompts = [sum(phase.client.prompt_tokens for phase in bench.phases) for bench in benches.values()]
    assert max(prompts) < 1.02 * min(prompts), f"The prompts differ in length: {prompts}"
    return SystemSpeed(phases=[phase for bench in benches.values() for phase in bench.phases])


async def _measure_server(system: System, url: str, folder: Path) -> SystemSpeed:
    async with client(url) as session:
        bench = Bench(await find(url, None), session, OBJECTIVE, folder / "bench.log")
        await bench.run(_scenario("warm-up", 8, MANY, seed=99))
        bench.phases.clear()
        for seed, scenario in enumerate(scenarios(system)):
            await bench.run(scenario.model_copy(update={"seed": seed}))
    return SystemSpeed(phases=bench.phases)


def scenarios(system: System) -> list[Scenario]:
    """The scenarios that are sent to a system."""
    found = [_scenario("text at 1", 4, 1), _scenario(f"text at {MANY}", system.requests, MANY)]
    if not system.name.startswith("experts"):
        found += [
            _scenario("image at 1", 4, 1, images=1),
            _scenario(f"image at {MANY}", system.requests, MANY, images=1),
        ]
    if system.curves:
        found += [_scenario(f"at once {n}", max(3, 2 * n), n) for n in AT_ONCE]
        found += [_scenario(f"images {n}", 3, 1, images=n, answer_tokens=1) for n in IMAGES]
        found += [_scenario(f"tokens {n}", 3, 1, text_tokens=n, answer_tokens=1) for n in TOKENS]
    return found


def _scenario(name: str, requests: int, at_once: int, **changes: Any) -> Scenario:
    settings = {"text_tokens": TEXT, "answer_tokens": ANSWER}
    return Scenario.model_validate(
        settings | {"name": name, "requests": requests, "at_once": at_once} | changes
    )


def _measure_loop(system: System, folder: Path) -> SystemSpeed:
    dtype = torch.float32 if system.shape is None else getattr(torch, system.shape.dtype)
    generator = PlainGenerator(_checkpoint(system, folder), dtype)
    side = generator.tower.config.image_size
    return SystemSpeed(
        plain={
            "text": tokens_per_second(generator, 6, TEXT, ANSWER, 0, side),
            "image": tokens_per_second(generator, 6, TEXT, ANSWER, 1, side),
        }
    )
