"""Made-up results of load tests, for the tests of reports and checks."""

from typing import Any

from prismoe.loadtests.results import Check, ExpertUse, Latency, Memory, Phase, Run, Soak, Totals
from prismoe.loadtests.scenarios import Scenario
from prismoe.loadtests.target import Target

TARGET = Target(
    url="http://127.0.0.1:8000",
    model="prismoji",
    tokenizer="/checkpoints/prismoji",
    image_tokens=64,
    tokens_beside_image=1,
    template_tokens=5,
)


def phase(
    name: str, requests_per_s: float = 8.0, server_requests: int = 10, failed: int = 0, **scenario: Any
) -> Phase:
    """Ten requests of 20 prompt tokens and 4 generated ones."""
    latency = Latency(mean=20, p50=10, p90=40, p99=90)
    return Phase(
        scenario=Scenario(name=name, requests=10, **scenario),
        arguments=["--backend", "openai-chat"],
        duration_s=10 / requests_per_s,
        client=Totals(requests=10, prompt_tokens=200, generated_tokens=40),
        server=Totals(requests=server_requests, prompt_tokens=200, generated_tokens=40),
        failed=failed,
        errors={"Bad Gateway": failed} if failed else {},
        requests_per_s=requests_per_s,
        generated_tokens_per_s=4 * requests_per_s,
        good_requests_per_s=requests_per_s / 2,
        latency=dict.fromkeys(("ttft", "tpot", "itl", "e2el"), latency),
        expert_load=ExpertUse(
            tokens={"text": 10, "image": 40},
            experts_per_token={"text": 2.0, "image": 2.75},
            by_layer={"0": {"text": [1, 3], "image": [2, 2]}, "2": {"text": [4, 0], "image": [0, 0]}},
        ),
    )


def run(*phases: Phase, checks: tuple[Check, ...] = (), soak: Soak | None = None) -> Run:
    return Run(
        started="2026-11-22T12:00:00+00:00",
        command="python -m prismoe.loadtests",
        target=TARGET,
        objective=["ttft:2000"],
        phases=list(phases),
        saturation=None,
        soak=soak,
        checks=list(checks),
    )


def memory(*mebibytes: int) -> list[Memory]:
    """The memory samples of a process with these sizes, one every five seconds."""
    return [
        Memory(at_s=5.0 * index, bytes_by_process={"7 prismoe": size * 2**20})
        for index, size in enumerate(mebibytes)
    ]
