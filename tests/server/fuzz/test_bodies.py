"""Random requests to all routes, with faults. The server has to refuse or answer them.

PRISMOE_FUZZ_CASES is their number, 300 by default. If it is set, two servers are tested instead of one (see
conftest.py). `pytest -s` shows the statuses by route.
"""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.server.fuzz.conftest import CASES
from tests.server.fuzz.faults import Findings, Watched
from tests.server.fuzz.grammar import Request, requests
from tests.server.fuzz.processes import resident_bytes

pytestmark = pytest.mark.timeout(600 + CASES)

ROUTES = 9
MOST, REPEATS = 300, 4
"""The number of requests that are repeated, and how often, to find memory that the server keeps."""

EXAMPLES = settings(
    max_examples=-(-CASES // ROUTES),
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def cases(watched: Watched) -> list[Request]:
    made: list[Request] = []
    routes = requests(watched.wires.urls + watched.wires.paths)
    assert len(routes) == ROUTES
    for route in routes:

        @EXAMPLES
        @given(request=route)
        def make(request: Request) -> None:
            made.append(request)

        make()
    return made


def test_every_request_is_refused_or_answered(watched: Watched, cases: list[Request]) -> None:
    findings, statuses = Findings(watched), dict[str, Counter[int]]()
    for path, body in cases:
        statuses.setdefault(path, Counter())[findings.ask(path, body)] += 1
    print(json.dumps(statuses))
    findings.check()
    assert len(cases) >= CASES and sum(counts[200] for counts in statuses.values()) > CASES / 5
    assert "Traceback" not in watched.server.output


def test_no_memory_is_kept(watched: Watched, cases: list[Request]) -> None:
    def ask(case: Request) -> int:
        return watched.http.post(case.path, content=case.body).status_code

    cases = cases[:: max(1, len(cases) // MOST)]
    with ThreadPoolExecutor(4) as clients:
        statuses = set(clients.map(ask, cases))
        before = resident_bytes(watched.server)
        for _ in range(REPEATS):
            statuses.update(clients.map(ask, cases))
    assert max(statuses) < 500
    assert resident_bytes(watched.server) < 1.1 * before
