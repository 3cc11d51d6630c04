"""Finds a server's saturation point: doubles the requests at once until the rate no longer grows."""

from collections.abc import Sequence

from prismoe.loadtests.bench import Bench
from prismoe.loadtests.results import Phase, Saturation
from prismoe.loadtests.scenarios import mixed_traffic

MOST_AT_ONCE = 256
FIRST_SEED = 100
"""Each step has its own seed, since repeated requests would be cached."""
WORTHWHILE = 1.05
"""A step is flat if its rate is less than 5% above the best before it."""
NEARLY = 0.95


async def ramp(bench: Bench, scale: float) -> Saturation:
    """Double the number of requests at once until two consecutive steps are flat."""
    steps: list[Phase] = []
    at_once = 1
    while at_once <= MOST_AT_ONCE and not _flat(steps):
        requests = max(at_once, round(scale * min(96, max(16, 6 * at_once))))
        name = f"ramp-{at_once}"
        steps.append(
            await bench.run(mixed_traffic(name, requests, at_once=at_once, seed=FIRST_SEED + at_once))
        )
        at_once *= 2
    return saturation(steps)


def saturation(steps: Sequence[Phase]) -> Saturation:
    """The saturation point of a ramp's steps."""
    most = max(step.requests_per_s for step in steps)
    reaching = (step for step in steps if step.requests_per_s >= NEARLY * most)
    at_once = min(step.scenario.at_once or MOST_AT_ONCE for step in reaching)
    return Saturation(at_once=at_once, requests_per_s=most, reached=_flat(steps))


def _flat(steps: Sequence[Phase]) -> bool:
    if len(steps) < 3:
        return False
    best = max(step.requests_per_s for step in steps[:-2])
    return all(step.requests_per_s < WORTHWHILE * best for step in steps[-2:])
