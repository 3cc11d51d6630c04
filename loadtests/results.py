"""The results of a load test, in the form of report.json."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from prismoe.loadtests.scenarios import Scenario
from prismoe.loadtests.target import Counters, Target, finished, total

MODALITIES = ("text", "image", "video", "audio")
TOLERANCE = 0.01


class Frozen(BaseModel):
    """A record that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Latency(Frozen):
    """Mean and percentiles in milliseconds, over requests, or over tokens for the time between tokens."""

    mean: float
    p50: float
    p90: float
    p99: float


class Totals(Frozen):
    """The number of completed requests, and of their tokens."""

    requests: int
    prompt_tokens: int
    generated_tokens: int

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(**{name: getattr(self, name) + getattr(other, name) for name in Totals.model_fields})


class ExpertUse(Frozen):
    """prismoe's counts of a phase, by each modality that the model has."""

    tokens: dict[str, int]
    experts_per_token: dict[str, float | None]
    by_layer: dict[str, dict[str, list[int]]]
    """Tokens by layer, modality and expert; empty if the server exports only the summary."""

    @classmethod
    def of(cls, counted: Counters) -> "ExpertUse | None":
        """Read the counts from the server's counters. Returns None if the server is not prismoe."""
        present = {dict(labels)["modality"] for name, labels in counted if name == "prismoe_tokens_total"}
        if not present:
            return None
        modalities = [name for name in MODALITIES if name in present]
        routed = {name: total(counted, "prismoe_routed_tokens_total", modality=name) for name in modalities}
        used = {name: total(counted, "prismoe_used_experts_total", modality=name) for name in modalities}
        return cls(
            tokens={name: int(total(counted, "prismoe_tokens_total", modality=name)) for name in modalities},
            experts_per_token={
                name: used[name] / routed[name] if routed[name] else None for name in modalities
            },
            by_layer=_by_layer(counted),
        )


class Phase(Frozen):
    """One scenario's outcome."""

    scenario: Scenario
    arguments: list[str]
    """The arguments of `vllm bench serve`."""
    duration_s: float
    client: Totals
    server: Totals
    failed: int
    errors: dict[str, int]
    """The messages of failed requests, and how often each came."""
    requests_per_s: float
    generated_tokens_per_s: float
    good_requests_per_s: float
    """Requests that met the objective, a second."""
    latency: dict[Annotated[str, Field(pattern="^(ttft|tpot|itl|e2el)$")], Latency]
    expert_load: ExpertUse | None

    @property
    def vision_per_text(self) -> float | None:
        """The number of computed vision tokens (of images and videos) for each text token."""
        if self.expert_load is None or not self.expert_load.tokens["text"]:
            return None
        tokens = self.expert_load.tokens
        return (tokens.get("image", 0) + tokens.get("video", 0)) / tokens["text"]


class Saturation(Frozen):
    """The point where more requests at once no longer give more answers a second."""

    at_once: int
    """The smallest number of requests at once that reaches 95% of the highest rate."""
    requests_per_s: float
    """The highest rate of answers."""
    reached: bool
    """False if the ramp ended before it became flat."""


class Check(Frozen):
    """Two numbers that have to agree."""

    what: str
    left: float
    right: float
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether they differ by at most the tolerance, relative to the right one."""
        return abs(self.left - self.right) <= self.tolerance * abs(self.right)


class Memory(Frozen):
    """Resident memory of the server's processes."""

    at_s: float
    bytes_by_process: dict[str, int]


class Soak(Frozen):
    """The results that only a soak has."""

    rate: float
    bad_requests: dict[str, Counter[str]]
    """How often each status came, by kind of bad request."""
    unexpected: int
    """The number of bad requests without a 4xx answer."""
    memory: list[Memory]
    broken_off: list[str] = []
    """The background tasks that failed before the soak ended, and their errors."""


class Run(Frozen):
    """A whole load test."""

    started: str
    command: str
    target: Target
    objective: list[str]
    phases: list[Phase]
    saturation: Saturation | None
    soak: Soak | None
    checks: list[Check]

    @property
    def errors(self) -> int:
        """The number of failed requests, bad requests that were not refused, and failed background tasks."""
        in_soak = self.soak.unexpected + len(self.soak.broken_off) if self.soak else 0
        return sum(phase.failed for phase in self.phases) + in_soak

    @property
    def sound(self) -> bool:
        """Whether there was no error and every check holds."""
        return not self.errors and all(check.holds for check in self.checks)


def server_totals(counted: Counters) -> Totals:
    """The totals from the server's counters."""
    return Totals(
        requests=int(finished(counted)),
        prompt_tokens=int(total(counted, "vllm:prompt_tokens_total")),
        generated_tokens=int(total(counted, "vllm:generation_tokens_total")),
    )


def totals_agree(phases: Sequence[Phase]) -> list[Check]:
    """Check that the totals of client and server agree, over all phases."""
    nothing = Totals(requests=0, prompt_tokens=0, generated_tokens=0)
    client = sum((phase.client for phase in phases), nothing)
    server = sum((phase.server for phase in phases), nothing)
    return [
        Check(
            what=f"{name.replace('_', ' ')}: client, server",
            left=getattr(client, name),
            right=getattr(server, name),
        )
        for name in Totals.model_fields
    ]


def of_bench(scenario: Scenario, arguments: Sequence[str], found: dict[str, Any], counted: Counters) -> Phase:
    """A phase from the result of `vllm bench serve` and the growth of the server's counters."""
    failures = [error.strip().rpartition("\n")[2] for error in found["errors"] if error]
    return Phase(
        scenario=scenario,
        arguments=list(arguments),
        duration_s=found["duration"],
        client=Totals(
            requests=found["completed"],
            prompt_tokens=found["total_input_tokens"],
            generated_tokens=found["total_output_tokens"],
        ),
        server=server_totals(counted),
        failed=found["failed"],
        errors=Counter(failures),
        requests_per_s=found["request_throughput"],
        generated_tokens_per_s=found["output_throughput"],
        good_requests_per_s=found["request_goodput"],
        latency={
            name: Latency(
                mean=found[f"mean_{name}_ms"],
                **{f"p{percent}": found[f"p{percent}_{name}_ms"] for percent in (50, 90, 99)},
            )
            for name in ("ttft", "tpot", "itl", "e2el")
        },
        expert_load=ExpertUse.of(counted),
    )


def _by_layer(counted: Counters) -> dict[str, dict[str, list[int]]]:
    load: dict[int, dict[str, dict[int, int]]] = {}
    for (name, labels), value in counted.items():
        if name == "prismoe_expert_tokens_total":
            of = dict(labels)
            experts = load.setdefault(int(of["layer"]), {}).setdefault(of["modality"], {})
            experts[int(of["expert"])] = int(value)
    return {
        str(layer): {
            modality: [experts[index] for index in sorted(experts)]
            for modality, experts in sorted(by.items(), key=lambda item: MODALITIES.index(item[0]))
        }
        for layer, by in sorted(load.items())
    }
