"""Running requests while the server drains, without an engine."""

import asyncio
import json

from starlette.types import Message, Receive, Scope, Send

from prismoe.server.health.running_requests import RunningRequests


class Slow:
    """An app whose answers wait for the test. /stream begins at once."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = b"text/event-stream; charset=utf-8" if scope["path"] == "/stream" else b"application/json"
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
        if scope["path"] == "/stream":
            await send(start)
        await self.go.wait()
        if scope["path"] != "/stream":
            await send(start)
        await send({"type": "http.response.body", "body": b"whole"})


async def ask(app: RunningRequests, path: str) -> tuple[int, bytes]:
    sent: list[Message] = []
    scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": []}

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.start":
            scope["prismoe.answer"] = message  # like RequestLog

    await app(scope, None, send)  # type: ignore[arg-type]
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_running_requests_end_and_new_ones_are_refused() -> None:
    async def run() -> None:
        slow = Slow()
        app = RunningRequests(slow)
        under_way = [asyncio.create_task(ask(app, path)) for path in ("/", "/stream")]
        await asyncio.sleep(0)
        draining = asyncio.create_task(app.drain(10))
        await asyncio.sleep(0)
        status, body = await ask(app, "/")
        assert status == 503 and json.loads(body)["error"]["message"].startswith("The server is about to end")
        watched = [asyncio.create_task(ask(app, path)) for path in ("/livez", "/metrics")]
        await asyncio.sleep(0.1)
        assert not draining.done()
        slow.go.set()
        await draining
        assert await asyncio.gather(*under_way, *watched) == [(200, b"whole")] * 4

    asyncio.run(run())


def test_requests_that_take_too_long_are_ended_with_an_answer() -> None:
    async def run() -> None:
        app = RunningRequests(Slow())
        under_way = [asyncio.create_task(ask(app, path)) for path in ("/", "/stream")]
        await asyncio.sleep(0)
        await app.drain(0)
        (status, body), (stream_status, event) = await asyncio.gather(*under_way)
        assert status == 503 and json.loads(body)["error"]["code"] == 503
        assert stream_status == 200
        assert event.startswith(b"data: ") and event.endswith(b"\n\n")
        assert json.loads(event[6:])["error"]["code"] == 503

    asyncio.run(run())


def test_an_idle_server_drains_at_once() -> None:
    asyncio.run(asyncio.wait_for(RunningRequests(Slow()).drain(60), 1))


def test_a_request_that_is_cancelled_for_another_reason_stays_cancelled() -> None:
    async def run() -> None:
        task = asyncio.create_task(ask(RunningRequests(Slow()), "/"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(run())
