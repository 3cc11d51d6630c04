"""The limit on running requests, without an engine."""

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from prismoe.server.access.keys import Key, Role
from prismoe.server.limits.admission import Admission
from prismoe.server.limits.settings import LimitSettings

pytestmark = pytest.mark.timeout(10)  # A request that is admitted by mistake is never answered.

SETTINGS = LimitSettings(max_requests=3, max_requests_per_key=2)


class Held:
    """An app whose answers wait for the test."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.go.wait()
        if scope["path"] == "/fails":
            raise RuntimeError
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def ask(app: Any, key: str | None = None, path: str = "/", method: str = "POST") -> Message:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": method, "path": path, "headers": []}
    if key:
        scope["prismoe.key"] = Key(key, Role.CLIENT, "")
    try:
        await app(scope, None, send)
    except RuntimeError:
        return {"status": 500}
    return {**sent[0], "body": b"".join(message.get("body", b"") for message in sent)}


def test_requests_above_the_limit_get_a_retry_after() -> None:
    async def run() -> None:
        held = Held()
        app = Admission(held, SETTINGS)
        under_way = [asyncio.create_task(ask(app, key, path)) for key, path in
                     [("alice", "/fails"), ("alice", "/"), ("bob", "/")]]  # fmt: skip
        await asyncio.sleep(0)
        refused = await ask(app, "carol")
        assert refused["status"] == 429
        assert (b"retry-after", b"1") in refused["headers"]
        assert json.loads(refused["body"])["error"]["message"].endswith("try again in a moment.")
        get = asyncio.create_task(ask(app, "alice", method="GET"))
        await asyncio.sleep(0)
        held.go.set()
        assert [answer["status"] for answer in await asyncio.gather(*under_way, get)] == [500, 200, 200, 200]
        assert (await ask(app, "carol"))["status"] == 200

    asyncio.run(run())


@pytest.mark.parametrize(("given", "reported"), [([], b"1"), ([(b"retry-after", b"7")], b"7")])
def test_later_refusals_get_a_retry_after(given: list[tuple[bytes, bytes]], reported: bytes) -> None:
    """vLLM refuses if the decoded images hold too much memory."""

    async def full(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 429, "headers": given})

    answer = asyncio.run(ask(Admission(full, SETTINGS)))
    assert answer["headers"] == [(b"retry-after", reported)]


def test_one_key_cannot_take_all() -> None:
    async def run() -> None:
        held = Held()
        app = Admission(held, SETTINGS)
        under_way = [asyncio.create_task(ask(app, "alice")) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await ask(app, "alice")
        assert refused["status"] == 429 and b"your key" in refused["body"]
        under_way.append(asyncio.create_task(ask(app, "bob")))
        await asyncio.sleep(0)
        held.go.set()
        assert [answer["status"] for answer in await asyncio.gather(*under_way)] == [200] * 3

    asyncio.run(run())


def test_nothing_is_kept_for_a_key_without_requests() -> None:
    async def run() -> None:
        held = Held()
        held.go.set()
        app = Admission(held, SETTINGS)
        assert [
            (await ask(app, key, path))["status"] for key, path in [("alice", "/"), ("bob", "/fails")]
        ] == [
            200,
            500,
        ]
        assert not app._running_by_key

    asyncio.run(run())


def test_a_request_that_is_cancelled_makes_room() -> None:
    async def run() -> None:
        held = Held()
        app = Admission(held, SETTINGS)
        under_way = [asyncio.create_task(ask(app)) for _ in range(3)]
        await asyncio.sleep(0)
        assert (await ask(app))["status"] == 429
        for task in under_way:
            task.cancel()
        await asyncio.wait(under_way)
        held.go.set()
        assert (await ask(app))["status"] == 200

    asyncio.run(run())
