"""Writes docs/performance.md from the measurements."""

import os
import platform
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template

from prismoe.benchmarks.serving.systems import (
    ANSWER,
    AT_ONCE,
    HALF_A_BILLION,
    IMAGES,
    MANY,
    TEXT,
    TOKENS,
    SystemSpeed,
)
from prismoe.loadtests.plots import lines
from prismoe.loadtests.report import table
from prismoe.loadtests.results import Phase

TEXT_OF_PAGE = Path(__file__).with_name("page.md")


def page(measured: Mapping[str, SystemSpeed]) -> str:
    """The page's text."""
    policies = [_policy_row(name, found) for name, found in measured.items() if _is_policy(name)]
    head = [f"{what}, {n} at once" for what in ("text", "one picture") for n in (1, MANY)]
    return Template(TEXT_OF_PAGE.read_text()).substitute(
        machine=_machine(),
        text=TEXT,
        answer=ANSWER,
        layers=HALF_A_BILLION.layers,
        experts=HALF_A_BILLION.experts,
        parameters=f"{HALF_A_BILLION.parameters / 1e9:.2f}",
        dtype=HALF_A_BILLION.dtype,
        ratios=_ratios(measured),
        policies=table(["", *head, "experts per text token", "per vision token"], policies),
    )


def plots(measured: Mapping[str, SystemSpeed]) -> dict[str, str]:
    """The plots by file name."""
    curves = {name: found for name, found in measured.items() if _median(found, "at once 1", _speed)}
    experts = {name: found for name, found in measured.items() if name.startswith("experts")}
    found = {
        "performance-at-once": _curves(
            "Generated tokens a second by requests at once", "at once", curves, AT_ONCE, _speed
        ),
        "performance-images": _curves(
            "Milliseconds to the first token by pictures", "images", curves, IMAGES, _first_token
        ),
        "performance-tokens": _curves(
            "Milliseconds to the first token by text tokens",
            "tokens",
            curves,
            TOKENS,
            _first_token,
        ),
        "performance-experts": lines(
            "Generated tokens a second by experts in each of four layers",
            "experts",
            {
                label: [
                    (name.removeprefix("experts-"), _median(found, label, _speed) or 0)
                    for name, found in experts.items()
                ]
                for label in ("text at 1", f"text at {MANY}")
            },
        ),
    }
    return {name: svg for name, svg in found.items() if experts or name != "performance-experts"}


def _ratios(measured: Mapping[str, SystemSpeed]) -> str:
    """The speed of prismoe with top-k over the sequential loop and over stock vLLM, and the targets."""
    rows: list[list[object]] = []
    for size in ("bundled", "large"):
        for what in ("text", "image"):
            for at_once, target in ((MANY, 3), (1, 0.7)):
                loop = measured.get(f"{size}-pytorch", SystemSpeed()).plain.get(what)
                load = f"{what} at {at_once}"
                ours = _median(measured.get(f"{size}-topk", SystemSpeed()), load, _speed)
                rows.append(_ratio(size, load, ours, "the loop", loop, target))
    for size in ("small", "large"):
        beside = measured.get(f"{size}-beside-vllm", SystemSpeed())
        for at_once in (MANY, 1):
            ours, stock = (
                _median(beside, f"{name} text at {at_once}", _speed) for name in ("prismoe", "vllm")
            )
            rows.append(_ratio(size, f"text at {at_once}", ours, "stock vLLM", stock, 0.97))
    head = ["model", "load", "prismoe", "compared with", "its speed", "ratio", "target"]
    return table(head, filter(all, rows))


def _ratio(
    size: str, load: str, ours: float | None, other: str, theirs: float | None, target: float
) -> list[object]:
    return [size, load, ours, other, theirs, ours / theirs if ours and theirs else None, f"≥ {target}"]


def _is_policy(name: str) -> bool:
    return not name.startswith("experts") and not name.endswith("beside-vllm")


def _policy_row(name: str, found: SystemSpeed) -> list[object]:
    if found.plain:
        return [name, found.plain["text"], None, found.plain["image"], None, 2, 2]
    speeds = [_median(found, f"{what} at {n}", _speed) for what in ("text", "image") for n in (1, MANY)]
    loads = [phase.expert_load for phase in found.phases if phase.scenario.name == f"image at {MANY}"]
    used = loads[0].experts_per_token if loads and loads[0] else {}
    return [name, *speeds, used.get("text"), used.get("image")]


def _curves(
    title: str,
    label: str,
    curves: Mapping[str, SystemSpeed],
    steps: tuple[int, ...],
    of: Callable[[Phase], float],
) -> str:
    series = {
        name: [(str(step), _median(found, f"{label} {step}", of) or 0) for step in steps]
        for name, found in curves.items()
    }
    return lines(title, label, series)


def _median(found: SystemSpeed, label: str, of: Callable[[Phase], float]) -> float | None:
    values = [of(phase) for phase in found.phases if phase.scenario.name == label]
    return statistics.median(values) if values else None


def _speed(phase: Phase) -> float:
    return phase.generated_tokens_per_s


def _first_token(phase: Phase) -> float:
    return phase.latency["ttft"].p50


def _machine() -> str:
    found = Path("/proc/cpuinfo").read_text()
    cpu = re.search(r"model name\s*: (.*)", found)
    amx = " with AMX" if "amx_bf16" in found else ""
    return f"{len(os.sched_getaffinity(0))} cores of {cpu[1] if cpu else platform.machine()}{amx}"
