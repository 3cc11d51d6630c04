"""The ways in which the HTTP server ends, with an app and no engine."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvicorn
from fastapi import FastAPI

from prismoe.server.health.http_server import serve_until
from prismoe.server.limits.settings import LimitSettings
from tests.server.health.options import options

LIMIT_S = 10
SHUTDOWN_S = 7


async def forever() -> str:
    await asyncio.Event().wait()
    return ""


async def dies_soon() -> str:
    await asyncio.sleep(0.7)
    return "The engine died."


async def dies_at_once() -> str:
    return "The engine is stuck."


class Run:
    """The run of one server from start to end."""

    def __init__(self, app: FastAPI | None = None) -> None:
        self.app = app or FastAPI()
        self.args = options("--shutdown-timeout", str(SHUTDOWN_S))
        self.given: list[float] = []
        """The seconds that running requests got."""

    def __call__(
        self, failure: Callable[[], Awaitable[str]], meanwhile: Callable[["Run"], None]
    ) -> str | None:
        async def run() -> str | None:
            asyncio.get_running_loop().call_later(0.5, meanwhile, self)
            return await asyncio.wait_for(self._serve(failure()), LIMIT_S)

        return asyncio.run(run())

    async def _serve(self, failure: Awaitable[str]) -> str | None:
        async def end(seconds: float) -> None:
            self.given.append(seconds)

        with socket.create_server(("127.0.0.1", 0)) as listener:
            return await serve_until(self.app, listener, self.args, LimitSettings(), failure, end)

    def end_server(self) -> None:
        server: uvicorn.Server = self.app.state.server
        server.should_exit = True


def nothing(run: Run) -> None:
    pass


def test_a_server_that_ends_by_itself_fails() -> None:
    run = Run()
    assert run(forever, Run.end_server) == "The HTTP server ended by itself."
    assert run.given == [0]


def test_a_server_whose_engine_died_says_so() -> None:
    assert Run()(dies_soon, Run.end_server) == "The engine died."


def test_a_server_that_raises_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: uvicorn.Server) -> None:
        raise OSError("too many files")

    monkeypatch.setattr(uvicorn.Server, "main_loop", fail)
    assert Run()(forever, nothing) == "The HTTP server failed. Its error is in the log above."


def test_an_app_that_does_not_start_fails() -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no start")
        yield

    run = Run(FastAPI(lifespan=lifespan))
    assert run(forever, nothing) == "The HTTP server failed. Its error is in the log above."


def test_a_failure_of_the_engine_ends_the_server() -> None:
    run = Run()
    assert run(dies_at_once, nothing) == "The engine is stuck."
    assert run.given == [0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_not_a_failure_and_requests_get_their_time(number: signal.Signals) -> None:
    run = Run()
    assert run(forever, lambda _: os.kill(os.getpid(), number)) is None
    assert run.given == [SHUTDOWN_S]


def test_a_server_that_ends_after_a_signal_does_not_fail() -> None:
    def signal_and_end(run: Run) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        run.end_server()

    assert Run()(forever, signal_and_end) is None
