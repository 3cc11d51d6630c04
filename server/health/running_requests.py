"""The running requests, and how they end when the server ends."""

import asyncio
from http import HTTPStatus

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismoe.server.access.routes import METRICS, is_open
from prismoe.server.refusal import Refusal, refuse

RETRY_S = 10
CUT_LIMIT_S = 5

DRAINING = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "draining", "The server is about to end: try again in a moment.", RETRY_S
)
CUT = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "draining",
    "The server ended before the answer was complete: try again in a moment.",
    RETRY_S,
)


class RunningRequests:
    """ASGI middleware that keeps track of the running requests.

    While the server drains, new requests are refused, except for probes and metrics. Requests that still run
    after that are cut: their clients get a 503 if no answer has begun, or an error event if they read a
    stream.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with 503. If the request is cut, end its answer."""
        path = get_route_path(scope) if scope["type"] == "http" else ""
        if scope["type"] == "lifespan" or is_open(path) or path == METRICS:
            await self._app(scope, receive, send)
        elif self.draining:
            await refuse(DRAINING, scope, send)
        else:
            await self._follow(scope, receive, send)

    @property
    def trouble(self) -> str | None:
        """A sentence that says why the server is not ready; None if it is ready."""
        return DRAINING.message if self.draining else None

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, let the running ones finish for this time, then cut the rest."""
        self.draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        if unfinished := list(self._tasks):
            for task in unfinished:
                task.cancel()
            await asyncio.wait(unfinished, timeout=CUT_LIMIT_S)

    async def _follow(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.draining:
                raise
            await _cut(scope, send)
        finally:
            self._tasks.discard(task)


async def _cut(scope: Scope, send: Send) -> None:
    """End the answer of a request that was cancelled."""
    started: Message | None = scope.get("prismoe.answer")  # `RequestLog` stores it.
    if started is None:
        await refuse(CUT, scope, send)
        return
    scope["prismoe.refusal"] = CUT
    if dict(started["headers"]).get(b"content-type", b"").startswith(b"text/event-stream"):
        await send({"type": "http.response.body", "body": b"data: " + CUT.body + b"\n\n"})
