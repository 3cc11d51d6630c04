"""Slow, large and silent clients of a real uvicorn, without an engine."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from prismoe.server.limits.body import MIB, BodyLimit
from prismoe.server.limits.connection import MAX_HEADER_BYTES, BoundedConnection
from prismoe.server.limits.settings import LimitSettings

BOUND_S = 0.4
LIMITS = LimitSettings(
    max_body_mib=1,
    max_bodies_mib=2,
    max_connections=20,
    header_seconds=BOUND_S,
    body_seconds=BOUND_S,
    write_seconds=BOUND_S,
)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def post(length: int | str) -> bytes:
    return f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the number of bytes of the body, or with 16 MiB, or with a page after a delay."""
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    body = b"x" * 16 * MIB if scope["path"] == "/large" else str(len((await receive())["body"])).encode()
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", str(len(body)).encode())],
        }
    )
    for start in range(0, len(body), MIB):
        more = start + MIB < len(body)
        await send({"type": "http.response.body", "body": body[start : start + MIB], "more_body": more})


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[int, uvicorn.Server]]:
    """A server of `app` behind the limits: its port, and the server."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        BodyLimit(app, LIMITS),
        http=partial(BoundedConnection, LIMITS),  # type: ignore[arg-type]
        lifespan="off",
        log_level="critical",
        timeout_keep_alive=1,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = True
        await task


async def answer(port: int, *pieces: bytes, pause: float = 0) -> tuple[bytes, float]:
    """Everything that comes until the server closes the connection, and the seconds until then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    start = time.monotonic()

    async def write() -> None:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)

    writing = asyncio.create_task(write())
    got = b""
    with contextlib.suppress(ConnectionError):
        got = await asyncio.wait_for(reader.read(), 20)
    seconds = time.monotonic() - start
    writing.cancel()
    writer.close()
    return got, seconds


def run(*pieces: bytes, pause: float = 0) -> tuple[bytes, float]:
    async def ask() -> tuple[bytes, float]:
        async with serving() as (port, _):
            return await answer(port, *pieces, pause=pause)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "pieces",
    [[], [b"G"], [GET[:9], b"H: x\r\n"] * 3, [bytes([byte]) for byte in GET * 2], [b"\r\n"] * 100],
    ids=["nothing", "a byte", "a stopped header", "a byte at a time", "empty lines"],
)
def test_a_header_has_a_time_limit(pieces: list[bytes]) -> None:
    got, seconds = run(*pieces, pause=0.05)
    assert got == b"" or got.startswith(b"HTTP/1.1 400")
    assert seconds < BOUND_S + 1


def test_a_large_header_is_refused() -> None:
    line = b"A: " + b"x" * 8000 + b"\r\n"
    # Nothing more is sent once it is too large, or the client's system could throw the answer away.
    got, _ = run(GET[:-2], *[line] * (MAX_HEADER_BYTES // len(line) + 1), pause=0.005)
    assert got.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "start",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
        GET.replace(b"/ ", b"/slow ") + GET[:-2],
    ],
    ids=["trailers", "the next request's"],
)
def test_bytes_outside_a_body_are_limited(start: bytes) -> None:
    got, _ = run(start, *[b"A: " + b"x" * 8000 + b"\r\n"] * 40, pause=0.005)
    assert b"HTTP/1.1 200 " not in got


def test_many_requests_on_a_connection_are_not_a_large_header() -> None:
    got, _ = run(*[GET[:-2] + b"A: " + b"x" * 8000 + b"\r\n\r\n"] * 20, pause=0.02)
    assert got.count(b"HTTP/1.1 200 ") == 20


def test_a_pipelined_request_has_its_own_time() -> None:
    got, _ = run(GET + post(2), b"x", b"x", pause=0.1)
    assert got.count(b"HTTP/1.1 200 ") == 2


def test_a_body_has_a_time_limit() -> None:
    got, seconds = run(post(100), *[b"x"] * 100, pause=0.05)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 0.4 s: " in got
    assert seconds < BOUND_S + 6 + 1  # its client may still read the answer


def test_a_large_body_is_refused() -> None:
    got, _ = run(post(MIB + 1))
    assert got.startswith(b"HTTP/1.1 413 ") and b"larger than 1 MiB" in got
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    got, _ = run(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", *[chunk] * 40)
    assert got.startswith(b"HTTP/1.1 413 ")


def test_a_complete_body_passes_unchanged() -> None:
    got, _ = run(post(MIB), b"x" * MIB)
    assert got.startswith(b"HTTP/1.1 200 ") and got.endswith(b"\r\n\r\n1048576")


def test_all_bodies_together_are_limited() -> None:
    async def ask() -> None:
        async with serving() as (port, _):
            held = [asyncio.create_task(answer(port, post(MIB), b"x" * (MIB - 1))) for _ in range(2)]
            await asyncio.sleep(BOUND_S / 2)
            got, _ = await answer(port, post(3), b"xxx")
            assert got.startswith(b"HTTP/1.1 429 ") and b"retry-after: 1" in got
            for task in held:
                assert (await task)[0].startswith(b"HTTP/1.1 408 ")
            assert (await answer(port, post(3), b"xxx"))[0].startswith(b"HTTP/1.1 200 ")

    asyncio.run(ask())


def test_a_client_that_does_not_read_is_disconnected() -> None:
    async def ask() -> None:
        async with serving() as (port, server):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(GET.replace(b"/ ", b"/large "))
            await asyncio.sleep(BOUND_S / 2)
            assert len(server.server_state.connections) == 1
            await asyncio.sleep(BOUND_S + 1)
            assert not server.server_state.connections and not server.server_state.tasks
            writer.close()

    asyncio.run(ask())


def test_a_client_that_does_not_read_its_last_answer_is_disconnected() -> None:
    async def ask() -> None:
        async with serving() as (port, server):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(GET.replace(b"/ ", b"/large ").replace(b"Host: x", b"Connection: close\r\nHost: x"))
            await asyncio.sleep(2 * BOUND_S + 1)
            assert not server.server_state.connections
            writer.close()

    asyncio.run(ask())


def test_clients_that_connect_and_leave_disturb_nobody() -> None:
    async def ask() -> None:
        async with serving() as (port, server):
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
            await asyncio.sleep(0.05)
            assert len(server.server_state.connections) <= 20  # those above the limit are closed
            await asyncio.sleep(BOUND_S + 0.5)
            assert not server.server_state.connections
            assert (await answer(port, GET))[0].startswith(b"HTTP/1.1 200 ")
            for _, writer in silent:
                writer.close()

    asyncio.run(ask())


def test_a_connection_is_used_again_after_a_pause() -> None:
    got, seconds = run(GET, GET, post(1) + b"x", GET, pause=0.6)
    assert got.count(b"HTTP/1.1 200 ") == 4
    assert 2 < seconds < 6  # the last one ends by the keep-alive limit


def test_a_connection_with_a_refused_body_ends_by_the_keep_alive_limit() -> None:
    got, seconds = run(post(MIB + 1), b"x" * (MIB + 1), pause=0.2)
    assert got.startswith(b"HTTP/1.1 413 ")
    assert 1 < seconds < 5  # before the lingering close of the body ends
