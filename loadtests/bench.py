"""Runs a scenario with `vllm bench serve`, inside this process."""

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from prismoe.loadtests.results import Phase, of_bench
from prismoe.loadtests.scenarios import Scenario
from prismoe.loadtests.target import Counters, Target, counters, difference


class Bench:
    """Runs scenarios against one server, and appends the output of vLLM's benchmark to a log."""

    def __init__(
        self, target: Target, session: httpx.AsyncClient, objective: Sequence[str], log: Path
    ) -> None:
        self.target = target
        self.phases: list[Phase] = []
        self.counters: Counters = {}
        """The server's counters after the latest phase."""
        self._session = session
        self._objective = objective
        self._log = log

    async def run(self, scenario: Scenario) -> Phase:
        """Send the scenario's requests, wait for the last answer, and read the server's counters."""
        arguments = scenario.arguments(self.target, self._objective)
        before = self.counters or await counters(self._session)
        with output_to(self._log):
            found = await vllm_bench_serve(arguments)
        self.counters = await counters(self._session, before)
        phase = of_bench(scenario, arguments, found, difference(before, self.counters))
        self.phases.append(phase)
        print(
            f"  {scenario.name:<18}{phase.client.requests:>5} requests {phase.requests_per_s:>7.2f}/s  "
            f"{phase.generated_tokens_per_s:>7.1f} tokens/s  TTFT p50 {phase.latency['ttft'].p50:>6.0f} ms  "
            f"failed {phase.failed}",
            flush=True,
        )
        return phase


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Append the output of this process and its libraries to a file during the block."""
    sys.stdout.flush()
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with log.open("ab") as file:
        for descriptor in kept:
            os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        for descriptor, copy in kept.items():
            os.dup2(copy, descriptor)
            os.close(copy)


async def vllm_bench_serve(arguments: Sequence[str]) -> dict[str, Any]:
    """Run `vllm bench serve` with these arguments, and return its result."""
    # Imported here, because it takes ten seconds, and wrong options should be reported before.
    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    try:
        return dict(await main_async(parser.parse_args(list(arguments))))
    finally:
        # vLLM froze the heap to avoid pauses. Its libraries report leaks at exit unless it is unfrozen.
        gc.unfreeze()
