"""The requests under way, and what becomes of them when the server ends."""

import asyncio
from http import HTTPStatus

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismoe.server.access.routes import METRICS, is_open
from prismoe.server.refusal import Refusal, refuse

RETRY_S = 10
CUT_LIMIT_S = 5

DRAINING = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "draining", "The server is about to end: ask again in a moment.", RETRY_S
)
CUT = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "draining", "The server ended before its answer did: ask again.", RETRY_S
)


class RunningRequests:
    """ASGI middleware that knows the requests under way.

    While the server drains, new ones are refused, except for probes and metrics. What is left after that is
    cut: a client that has no answer yet gets a 503, one that reads a stream an error event.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer for it where it is cut."""
        path = get_route_path(scope) if scope["type"] == "http" else ""
        if scope["type"] == "lifespan" or is_open(path) or path == METRICS:
            await self._app(scope, receive, send)
        elif self.draining:
            await refuse(DRAINING, scope, send)
        else:
            await self._follow(scope, receive, send)

    @property
    def trouble(self) -> str | None:
        """Why no requests should be sent here, in a sentence; None where there is no reason."""
        return DRAINING.message if self.draining else None

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, give those under way so long, then cut them."""
        self.draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        if left := list(self._tasks):
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=CUT_LIMIT_S)

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
    """End an answer whose request was cancelled."""
    started: Message | None = scope.get("prismoe.answer")  # as `RequestLog` noted it
    if started is None:
        await refuse(CUT, scope, send)
        return
    scope["prismoe.refusal"] = CUT
    if dict(started["headers"]).get(b"content-type", b"").startswith(b"text/event-stream"):
        await send({"type": "http.response.body", "body": b"data: " + CUT.body + b"\n\n"})
