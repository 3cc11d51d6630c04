"""A soak reports all errors. These tests have no server."""

import asyncio
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from prismoe.loadtests.report import markdown
from prismoe.loadtests.results import Soak
from prismoe.loadtests.soak import soak
from tests.loadtests.runs import TARGET, phase, run

MINUTES = 0.2 / 60


async def round_of(seconds: float) -> None:
    await asyncio.sleep(seconds)


def soaked(answer: Any, pid: int) -> Soak:
    """Run a soak of 0.2 s with 40 bad requests a second, which get this answer, and the memory of `pid`."""

    async def ask() -> Soak:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(base_url="http://x", transport=transport) as session:
            bench: Any = SimpleNamespace(target=TARGET, run=lambda scenario: round_of(0.2))
            return await soak(bench, session, MINUTES, rate=80, bad_share=0.5, pid=pid)

    return asyncio.run(ask())


def refuse(request: httpx.Request) -> httpx.Response:
    return httpx.Response(400)


def fail(request: httpx.Request) -> httpx.Response:
    raise ValueError("no answer that httpx can read")


def test_a_sound_soak() -> None:
    found = soaked(refuse, os.getpid())
    assert run(phase("a"), soak=found).sound
    assert found.broken_off == [] and found.memory
    assert {status for statuses in found.bad_requests.values() for status in statuses} == {"400"}


def test_a_failing_memory_record_fails_the_run() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    found = soaked(refuse, gone.pid)
    [broken_off] = found.broken_off
    assert broken_off.startswith("the recording of memory: NoSuchProcess: ") and str(gone.pid) in broken_off
    ended = run(phase("a"), soak=found)
    assert (ended.errors, ended.sound) == (1, False)
    assert f"**Stopped early:** {broken_off}." in markdown(ended, None)


@pytest.mark.filterwarnings("error")
def test_a_bad_request_that_raises_fails_the_run() -> None:
    found = soaked(fail, os.getpid())
    assert {status for statuses in found.bad_requests.values() for status in statuses} == {"ValueError"}
    assert found.unexpected > 0 and found.broken_off == []
    assert not run(phase("a"), soak=found).sound
