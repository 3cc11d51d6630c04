"""The load tests measure what they say, on the shared server."""

import asyncio
import json

import pytest

from prismoe.loadtests.pair import compare, mixed_requests
from prismoe.loadtests.repeated_image import measure
from prismoe.loadtests.traffic import report
from tests.server.running import Server


def test_a_repeated_picture(server: Server) -> None:
    measured = asyncio.run(measure(server.url, pictures=2, rounds=2))
    assert 0 < measured["repeated_s"] < 60 and 0 < measured["cold_s"] < 60
    assert measured["times_faster"] > 0


def test_a_server_against_itself(server: Server) -> None:
    measured = asyncio.run(compare(server.url, server.url, rounds=2, requests=4, at_once=2))
    assert 0.1 < measured["a_over_b"] < 10


def test_the_same_seed_makes_the_same_load() -> None:
    assert mixed_requests(6, seed=1) == mixed_requests(6, seed=1) != mixed_requests(6, seed=2)


def test_a_refusal_is_a_sentence(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"The server did not answer: .*At most 8 image"):
        report(measure(server.url, pictures=9, rounds=1))
    report(measure(server.url, pictures=0, rounds=1))
    assert json.loads(capsys.readouterr().out)["rounds"] == 1
