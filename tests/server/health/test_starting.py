"""A server's answers while its engine starts."""

import multiprocessing
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from prismoe.server.errors import StartRefused
from prismoe.server.health.listener import listening
from prismoe.server.health.starting import answering_while_starting
from prismoe.server.limits.settings import LimitSettings
from tests.server.health.options import options
from tests.server.media.certificate import certificate

LIMIT_S = 10
LOOPBACK = ("--host", "127.0.0.1", "--port", "0")


@pytest.fixture
def url() -> Iterator[str]:
    args = options(*LOOPBACK)
    with listening(args) as listener, answering_while_starting(listener, args, LimitSettings()):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", 200),
        ("GET", "/readyz", 503),
        ("GET", "/health", 503),
        ("GET", "/metrics", 503),
        ("GET", "/v1/models", 503),
        ("GET", "/inspector", 503),
        ("POST", "/v1/chat/completions", 503),
        ("GET", "/no/such/route", 503),
    ],
)
def test_it_is_alive_and_not_ready(url: str, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, url + path, timeout=LIMIT_S, headers={"X-Request-Id": "mine"})
    assert answer.status_code == status
    assert answer.headers.get_list("x-request-id") == ["mine"]
    assert answer.headers["connection"] == "close"
    assert status == 200 or "The server is starting" in answer.text


def test_clients_are_asked_to_retry(url: str) -> None:
    answer = httpx.post(f"{url}/v1/completions", json={"prompt": "x" * 100_000}, timeout=LIMIT_S)
    assert answer.headers["retry-after"] == "10"
    assert answer.json()["error"]["code"] == 503


def accepted_from(client: socket.socket, listener: socket.socket) -> socket.socket:
    """The server's end of this client's connection. An older connection may be accepted first."""
    while True:
        accepted, address = listener.accept()
        if address == client.getsockname():
            return accepted
        accepted.close()


def test_the_server_takes_over_and_misses_no_connection() -> None:
    args = options(*LOOPBACK)
    with listening(args) as listener:
        listener.settimeout(LIMIT_S)
        address = listener.getsockname()
        with answering_while_starting(listener, args, LimitSettings()):
            idle = socket.create_connection(address, LIMIT_S)
            idle.sendall(b"GET / HTTP/1.1\r\n")  # never ends its header
            start = time.monotonic()
        assert time.monotonic() - start < 5
        client = socket.create_connection(address, LIMIT_S)
        accepted = accepted_from(client, listener)
        accepted.sendall(b"from the server")
        assert client.recv(100) == b"from the server"
        for each in (idle, client, accepted):
            each.close()


def test_a_process_that_is_forked_meanwhile_inherits_no_connection() -> None:
    args = options(*LOOPBACK)
    with listening(args) as listener:
        address = listener.getsockname()
        with answering_while_starting(listener, args, LimitSettings()):
            client = socket.create_connection(address, LIMIT_S)
            client.sendall(b"GET / HTTP/1.1\r\n")
            time.sleep(0.5)
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            child.start()
        try:
            assert client.recv(100) == b""
        finally:
            child.kill()
            child.join(LIMIT_S)
            client.close()


def test_at_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    args = options("--uds", path)
    with (
        listening(args) as listener,
        answering_while_starting(listener, args, LimitSettings()),
        httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=LIMIT_S) as client,
    ):
        assert client.get("http://server/readyz").status_code == 503


def test_with_tls() -> None:
    authority, file = certificate("localhost")
    args = options(*LOOPBACK, "--ssl-certfile", file, "--ssl-keyfile", file)
    trust = ssl.create_default_context(cadata=authority)
    with listening(args) as listener, answering_while_starting(listener, args, LimitSettings()):
        url = f"https://localhost:{listener.getsockname()[1]}/livez"
        assert httpx.get(url, verify=trust, timeout=LIMIT_S).status_code == 200


@pytest.mark.parametrize(
    "arguments", [("--ssl-certfile", "/no/such/file"), ("--ssl-keyfile", "/no/such/file")]
)
def test_an_unreadable_certificate_is_refused_with_a_message(arguments: tuple[str, ...]) -> None:
    args = options(*LOOPBACK, *arguments)
    with (
        listening(args) as listener,
        pytest.raises(StartRefused, match="--ssl-certfile and --ssl-keyfile can't be used"),
        answering_while_starting(listener, args, LimitSettings()),
    ):
        pass
