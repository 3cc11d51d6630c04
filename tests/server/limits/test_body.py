"""The memory of a request's body while the request runs."""

import asyncio
import json
import tracemalloc
from types import SimpleNamespace

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismoe.server.limits.body import MIB, BodyLimit
from prismoe.server.limits.settings import LimitSettings
from prismoe.server.requests.guard import RequestGuard
from prismoe.server.requests.models import Served
from tests.server.fake_engine import routing

PIECES = 64
BODY = json.dumps(
    {"messages": [{"role": "user", "content": "Hi"}], "filler": "x" * (4 * MIB)}, separators=(",", ":")
).encode()


def kept_of_a_body(wrapped: type[RequestGuard] | None) -> int:
    """The bytes of a body that remain after the app has read and dropped it."""
    kept = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == BODY
        kept.append(tracemalloc.get_traced_memory()[0] - before)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    size = len(BODY) // PIECES + 1
    pieces = iter([BODY[start : start + size] for start in range(0, len(BODY), size)])

    async def receive() -> Message:
        piece = next(pieces)
        return {"type": "http.request", "body": piece, "more_body": not BODY.endswith(piece)}

    async def send(message: Message) -> None:
        assert message["status"] == 200

    state = SimpleNamespace(routing=routing(), served=Served())
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/tokenize",
        "headers": [],
        "app": SimpleNamespace(state=state),
    }
    behind: ASGIApp = app if wrapped is None else wrapped(app)
    limited = BodyLimit(behind, LimitSettings.model_validate({}))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        asyncio.run(limited(scope, receive, send))
    finally:
        tracemalloc.stop()
    return int(kept[0])


@pytest.mark.parametrize("wrapped", [None, RequestGuard])
def test_nothing_is_kept_of_a_body_after_the_app_read_it(wrapped: type[RequestGuard] | None) -> None:
    assert kept_of_a_body(wrapped) < len(BODY) / 10
