"""Requests from the server's own description: a 4xx or an answer, no crash, and no memory is kept."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok

from tests.server.conftest import image_part, user
from tests.server.fuzz.conftest import CASES
from tests.server.fuzz.processes import resident_bytes
from tests.server.running import Server

pytestmark = pytest.mark.timeout(600 + CASES)

EXAMPLES = CASES // 30
"""The number of random requests of schemathesis for each operation."""


def check_alive(http: httpx.Client, picture: bytes) -> None:
    body = {"model": "prismoji", "messages": user(image_part(picture), "What is this?"), "max_tokens": 2}
    assert http.post("/v1/chat/completions", json=body).status_code == 200


@pytest.fixture
def steady(server: Server, http: httpx.Client, picture: bytes) -> Callable[[], None]:
    """A check that the server lives, and has no more memory than when the fixture was called."""
    before = resident_bytes(server)

    def check() -> None:
        check_alive(http, picture)
        assert resident_bytes(server) < 1.1 * before

    return check


def test_requests_from_the_servers_own_description(server: Server, steady: Callable[[], None]) -> None:
    """Schemathesis makes right and wrong requests from the OpenAPI document."""
    crashes = []
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
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
        def ask(case: schemathesis.Case[Any]) -> None:
            answered = case.call(base_url=server.url, timeout=60)
            if answered.status_code >= 500 and answered.status_code != HTTPStatus.NOT_IMPLEMENTED:
                crashes.append((case.as_curl_command(), answered.text[:300]))

        ask()
    assert not crashes
    steady()
