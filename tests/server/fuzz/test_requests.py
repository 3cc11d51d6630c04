"""Broken requests to the real server: a 4xx or an answer, no crash, and no memory stays taken."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.server.conftest import image_part, user
from tests.server.fuzz.bodies import mutated_request
from tests.server.running import Server

REQUESTS = 2000
WARM_UP = 300
EXAMPLES = 10
"""How many requests schemathesis makes up for each operation."""

INNER_ERROR = re.compile(r'"code": ?5\d\d')
"""How a stream that has begun tells of one."""


def resident_bytes(server: Server) -> int:
    """Of the server, its engine and its workers."""
    server.watch()
    family = [psutil.Process(server.process.pid), *server.family]
    return sum(process.memory_info().rss for process in family if process.is_running())


def check_alive(http: httpx.Client, picture: bytes) -> None:
    body = {"model": "prismoji", "messages": user(image_part(picture), "What is this?"), "max_tokens": 2}
    assert http.post("/v1/chat/completions", json=body).status_code == 200


@pytest.fixture
def steady(server: Server, http: httpx.Client, picture: bytes) -> Callable[[], None]:
    """Checks that the server lives, and holds no more memory than when the test asked for this."""
    before = resident_bytes(server)

    def check() -> None:
        check_alive(http, picture)
        assert resident_bytes(server) < 1.1 * before

    return check


def test_a_number_makes_the_same_request_anywhere() -> None:
    texts = [path.encode() + body for path, body in map(mutated_request, range(100))]
    assert hashlib.sha256(b"".join(texts)).hexdigest()[:16] == "75ec180855ef1d2b"


def test_broken_requests(server: Server, http: httpx.Client, picture: bytes) -> None:
    crashes = []

    def status(number: int) -> int:
        path, body = mutated_request(number)
        answered = http.post(path, content=body, headers={"Content-Type": "application/json"})
        if answered.status_code >= 500 or INNER_ERROR.search(answered.text):
            crashes.append((number, path, body[:300], answered.text[:300]))
        return answered.status_code

    with ThreadPoolExecutor(4) as clients:
        statuses = Counter(clients.map(status, range(WARM_UP)))
        before = resident_bytes(server)
        statuses += Counter(clients.map(status, range(WARM_UP, REQUESTS)))
    assert not crashes
    check_alive(http, picture)
    assert resident_bytes(server) < 1.1 * before
    assert statuses[200] > REQUESTS / 20 and statuses[400] > REQUESTS / 4


def test_what_the_servers_own_description_allows(server: Server, steady: Callable[[], None]) -> None:
    """Schemathesis makes requests up by the OpenAPI document, right ones and wrong ones."""
    crashes = []
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) > 5
    for operation in operations:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            answered = case.call(base_url=server.url, timeout=60)
            if answered.status_code >= 500 and answered.status_code != HTTPStatus.NOT_IMPLEMENTED:
                crashes.append((case.as_curl_command(), answered.text[:300]))

        ask()
    assert not crashes
    steady()
