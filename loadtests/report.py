"""Writes a load test's report: Markdown and plots."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from prismoe.loadtests.plots import lines, shares
from prismoe.loadtests.results import Phase, Run
from prismoe.loadtests.soak import growth

GIB = 2**30
COMPARED: Mapping[str, Callable[[Phase], float]] = {
    "requests/s": lambda phase: phase.requests_per_s,
    "tokens/s": lambda phase: phase.generated_tokens_per_s,
    "good requests/s": lambda phase: phase.good_requests_per_s,
    "TTFT p50 ms": lambda phase: phase.latency["ttft"].p50,
    "TTFT p99 ms": lambda phase: phase.latency["ttft"].p99,
    "ITL p50 ms": lambda phase: phase.latency["itl"].p50,
    "end to end p50 ms": lambda phase: phase.latency["e2el"].p50,
}


def write_report(run: Run, against: Run | None, folder: Path) -> Path:
    """Write report.md, report.json and the plots into the folder; return the path of report.md."""
    plots = _plots(run)
    for name, svg in plots.items():
        (folder / f"{name}.svg").write_text(svg)
    (folder / "report.json").write_text(run.model_dump_json(indent=1))
    path = folder / "report.md"
    path.write_text(markdown(run, against, sorted(plots)))
    return path


def markdown(run: Run, against: Run | None, plots: Sequence[str] = ()) -> str:
    """The report's text, with links to the plots."""
    parts = [
        f"# Load test of {run.target.model}",
        f"`{run.command}` on {run.started}: "
        + ("sound." if run.sound else "**not sound**, see Errors and Checks."),
        f"The objective, in milliseconds: {', '.join(run.objective)}. "
        f"A picture is {run.target.image_tokens:g} vision tokens.",
        *_saturation(run),
        "## Phases",
        table(
            ["phase", "requests", "failed", "requests/s", "good requests/s", "tokens/s", "vision:text"],
            (
                [
                    phase.scenario.name,
                    phase.client.requests,
                    phase.failed,
                    phase.requests_per_s,
                    phase.good_requests_per_s,
                    phase.generated_tokens_per_s,
                    phase.vision_per_text,
                ]
                for phase in run.phases
            ),
        ),
        "Milliseconds: time to the first token (TTFT), time between tokens (ITL), and time from end to end.",
        table(
            ["phase", *(f"{word} p{p}" for word in ("TTFT", "ITL", "end to end") for p in (50, 90, 99))],
            (
                [
                    phase.scenario.name,
                    *(
                        getattr(phase.latency[name], f"p{p}")
                        for name in ("ttft", "itl", "e2el")
                        for p in (50, 90, 99)
                    ),
                ]
                for phase in run.phases
            ),
        ),
        *_errors(run),
        *_soak(run),
        *_expert_load(run),
        *(f"![{name}]({name}.svg)" for name in plots),
        "## Checks",
        table(
            ["", "", "", "holds"],
            (
                [check.what, check.left, check.right, "yes" if check.holds else "**no**"]
                for check in run.checks
            ),
        ),
        *(_comparison(run, against) if against else []),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers to three digits, and a dash for None."""
    written = [[_cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *written])


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float) and value != int(value):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{int(value):,}" if isinstance(value, int | float) else str(value)


def _saturation(run: Run) -> list[str]:
    if run.saturation is None:
        return []
    found = run.saturation
    rate = f"{found.requests_per_s:.2f} requests/s of mixed traffic"
    sentence = f"**Saturation: {rate}, reached with {found.at_once} at once.**"
    return [sentence if found.reached else f"{sentence} The ramp ended before it became flat."]


def _errors(run: Run) -> list[str]:
    errors = [
        (phase.scenario.name, text, count) for phase in run.phases for text, count in phase.errors.items()
    ]
    return ["## Errors", table(["phase", "error", "times"], errors) if errors else "None."]


def _soak(run: Run) -> list[str]:
    if run.soak is None:
        return []
    grown = growth(run.soak.memory)
    memory = (
        ""
        if grown is None
        else f" Median memory in the last quarter is {grown:.3f} times that in the second."
    )
    return [
        "## Soak",
        f"{run.soak.rate:.2f} requests/s. Bad requests without a 4xx answer: {run.soak.unexpected}.{memory}",
        *(f"**Stopped early:** {what}." for what in run.soak.broken_off),
        table(
            ["bad request", "statuses"],
            (
                [kind, ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))]
                for kind, statuses in sorted(run.soak.bad_requests.items())
            ),
        ),
    ]


def _expert_load(run: Run) -> list[str]:
    counted = [(phase.scenario.name, phase.expert_load) for phase in run.phases if phase.expert_load]
    if not counted:
        return []
    modalities = list(counted[0][1].tokens)
    rows = (
        [name, *(load.tokens[m] for m in modalities), *(load.experts_per_token[m] for m in modalities)]
        for name, load in counted
    )
    head = ["phase", *(f"{m} tokens" for m in modalities), *(f"experts per {m} token" for m in modalities)]
    return ["## Expert load by modality", table(head, rows)]


def _comparison(run: Run, against: Run) -> list[str]:
    """A table of this run's figures over the other's, for each phase with the same scenario in both runs."""
    others = {phase.scenario: phase for phase in against.phases}
    rows = [
        [phase.scenario.name, *(_ratio(of(phase), of(others[phase.scenario])) for of in COMPARED.values())]
        for phase in run.phases
        if phase.scenario in others
    ]
    return [
        "## Against the other run",
        f"This run's figures over those of {against.started} (`{against.command}`). Above 1 is more.",
        table(["phase", *COMPARED], rows) if rows else "No phase has the same scenario in both.",
    ]


def _ratio(this: float, other: float) -> float | None:
    return this / other if other else None


def _plots(run: Run) -> dict[str, str]:
    plots = {}
    ramp = [phase for phase in run.phases if phase.scenario.name.startswith("ramp-")]
    if ramp:
        plots["ramp"] = lines(
            "Requests a second by requests at once",
            "at once",
            {
                "answered": _by_step(ramp, lambda phase: phase.requests_per_s),
                "within the objective": _by_step(ramp, lambda phase: phase.good_requests_per_s),
            },
        )
        plots["ramp-latency"] = lines(
            "Time to first token by requests at once, milliseconds",
            "at once",
            {
                percentile: _by_step(ramp, partial(_first_token, percentile))
                for percentile in ("p50", "p90", "p99")
            },
        )
    loads = {phase.scenario.name: phase.expert_load for phase in run.phases if phase.expert_load}
    by_layer = {name: load.by_layer for name, load in loads.items() if load.by_layer}
    if by_layer:
        first = next(iter(by_layer.values()))
        plots["expert-load"] = shares(
            "Share of each modality's expert uses, by layer and expert",
            {
                name: [_shares(uses) for layer in load.values() for uses in layer.values()]
                for name, load in by_layer.items()
            },
            [f"{layer} {modality}" for layer, modalities in first.items() for modality in modalities],
        )
    if run.soak and run.soak.memory:
        names = run.soak.memory[0].bytes_by_process
        plots["memory"] = lines(
            "Resident memory of the server's processes, GiB",
            "seconds",
            {
                name: [(m.at_s, m.bytes_by_process.get(name, 0) / GIB) for m in run.soak.memory]
                for name in names
            },
        )
    return plots


def _by_step(phases: Sequence[Phase], of: Callable[[Phase], float]) -> list[tuple[str, float]]:
    return [(str(phase.scenario.at_once), of(phase)) for phase in phases]


def _first_token(percentile: str, phase: Phase) -> float:
    return float(getattr(phase.latency["ttft"], percentile))


def _shares(counts: Sequence[int]) -> list[float]:
    return [count / (sum(counts) or 1) for count in counts]
