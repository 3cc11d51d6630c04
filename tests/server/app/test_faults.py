"""Production faults on real servers: their status, their time limit, and that no process is left."""

import asyncio
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil
import pytest

from prismoe.loadtests.local_server import free_port
from prismoe.server.access.keys import Role, add_key, read_keys
from tests.server.running import Server

pytestmark = pytest.mark.server

QUESTION = "What is this, a red herring?"
LONG: dict[str, Any] = {"max_tokens": 1900, "ignore_eos": True}
"""An answer that takes seconds."""


def body(**options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": QUESTION}]
    return {"model": "prismoji", "messages": messages, "max_tokens": 4, **options}


def ask(url: str, key: str = "", **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(f"{url}/v1/chat/completions", json=body(**options), headers=headers, timeout=60)


@contextlib.contextmanager
def stream(url: str, key: str = "") -> Iterator[Iterator[str]]:
    """The events of a long answer, after its first event."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = body(stream=True, **LONG)
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json=request, headers=headers, timeout=60
    ) as answer:
        assert answer.status_code == 200
        events = answer.iter_lines()
        assert next(events).startswith("data: ")
        yield events


def until(seconds: float, met: Any) -> float:
    """Wait for a condition, and return the seconds that it took."""
    start = time.monotonic()
    while not met():
        assert time.monotonic() - start < seconds
        time.sleep(0.02)
    return time.monotonic() - start


def child(server: Server, name: str) -> psutil.Process:
    server.watch()
    [found] = [process for process in server.family if process.is_running() and name in process.cmdline()[0]]
    return found


# One server that has to survive all these faults, and ends at last.


class Traces(BaseHTTPRequestHandler):
    """Receives OpenTelemetry's traces."""

    taken: list[bytes] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.taken.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def key(key_file: Path) -> str:
    return add_key(key_file, "alice", Role.CLIENT)


@pytest.fixture(scope="module")
def metrics_key(key_file: Path) -> str:
    return add_key(key_file, "prometheus", Role.METRICS)


@pytest.fixture(scope="module")
def server(
    key_file: Path, key: str, metrics_key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    collector = HTTPServer(("127.0.0.1", 0), Traces)
    Thread(target=collector.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
        running = Server(
            tmp_path_factory.mktemp("faults") / "log",
            *("--api-keys-file", str(key_file), "--body-seconds", "1", "--header-seconds", "2"),
            *("--max-requests-per-key", "4", "--max-body-mib", "1"),
            *("--logging-config.formatter", "json"),
            *("--otlp-traces-endpoint", f"http://127.0.0.1:{collector.server_port}/v1/traces"),
        )
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.kill()
        collector.shutdown()


def running_requests(server: Server, metrics_key: str) -> float:
    headers = {"Authorization": f"Bearer {metrics_key}"}
    metrics = httpx.get(f"{server.url}/metrics", headers=headers).text
    return sum(
        float(line.rpartition(" ")[2])
        for line in metrics.splitlines()
        if line.startswith(("vllm:num_requests_running{", "vllm:num_requests_waiting{"))
    )


def test_keys_change_without_a_restart(server: Server, key_file: Path, key: str) -> None:
    new = add_key(key_file, "bob", Role.CLIENT)
    assert [ask(server.url, secret).status_code for secret in ("", "wrong", key, new)] == [401, 401, 200, 200]
    left = [known.line for known in read_keys(key_file) if known.name != "bob"]
    key_file.write_text("\n".join(left) + "\n")
    assert [ask(server.url, secret).status_code for secret in (key, new)] == [200, 401]


def test_a_byte_a_second_is_refused_in_time(server: Server, key: str) -> None:
    async def trickle() -> tuple[bytes, float]:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        start = time.monotonic()
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n".encode()
        )
        for _ in range(3):
            writer.write(b"{")
            await asyncio.sleep(0.5)
        status = await asyncio.wait_for(reader.readline(), 5)
        seconds = time.monotonic() - start
        writer.close()
        return status, seconds

    status, seconds = asyncio.run(trickle())
    assert status.startswith(b"HTTP/1.1 408 ")
    assert seconds < 3
    assert ask(server.url, key).status_code == 200


def test_a_large_body_is_refused(server: Server, key: str) -> None:
    assert ask(server.url, key, padding="x" * 2**20).status_code == 413


def test_500_clients_that_connect_and_leave_disturb_nobody(server: Server, key: str) -> None:
    async def come() -> float:
        port = int(server.url.rpartition(":")[2])
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(500)]
        for index, (_, writer) in enumerate(clients):
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"[: index % 40])
        start = time.monotonic()
        assert (await asyncio.to_thread(ask, server.url, key)).status_code == 200
        seconds = time.monotonic() - start
        for _, writer in clients[:250]:
            writer.transport.abort()
        for reader, _ in clients[250:]:  # The server closes connections that stay.
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 10)
        return seconds

    assert asyncio.run(come()) < 3
    assert len(psutil.Process(server.process.pid).net_connections()) < 50


def test_a_client_that_leaves_frees_the_engine(server: Server, key: str, metrics_key: str) -> None:
    with stream(server.url, key):
        until(2, lambda: running_requests(server, metrics_key) == 1)
    assert until(1, lambda: running_requests(server, metrics_key) == 0) < 1
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{server.url}/v1/chat/completions",
            json=body(**LONG),
            headers={"Authorization": f"Bearer {key}"},
            timeout=0.5,
        )
    assert until(1, lambda: running_requests(server, metrics_key) == 0) < 1


def test_a_key_with_too_many_requests_has_to_wait(server: Server, key: str, key_file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        long = list(pool.map(lambda _: ask(server.url, key, max_tokens=200, ignore_eos=True), range(8)))
    assert {answer.status_code for answer in long} == {200, 429}
    refused = [answer for answer in long if answer.status_code == 429]
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert ask(server.url, key).status_code == 200


def test_each_request_has_a_line_and_a_trace(server: Server, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "the-tests-own"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body(), headers=headers)
    assert answer.headers["x-request-id"] == "the-tests-own"
    until(2, lambda: "the-tests-own" in server.output)
    lines = [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]
    [line] = [line for line in lines if line.get("request_id") == "the-tests-own"]
    usage = answer.json()["usage"]
    assert line["key"] == "alice" and line["status"] == 200 and line["route"] == "/v1/chat/completions"
    assert line["text_tokens"] == usage["prompt_tokens"] and "image_tokens" not in line
    assert line["answer_tokens"] == usage["completion_tokens"]
    assert 0 < line["first_token_s"] <= line["seconds"]
    assert "herring" not in server.output and key not in server.output
    until(10, lambda: any(b"gen_ai" in trace for trace in Traces.taken))


def test_a_server_under_load_finishes_its_requests(server: Server, key: str, metrics_key: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        under_way: list[Future[httpx.Response]] = [
            pool.submit(ask, server.url, key, max_tokens=600, ignore_eos=True) for _ in range(3)
        ]
        until(5, lambda: running_requests(server, metrics_key) == 3)
        server.watch()
        server.process.send_signal(signal.SIGTERM)
        until(2, lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
        assert httpx.get(f"{server.url}/livez").status_code == 200
        refused = ask(server.url, key)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        for answer in under_way:
            assert answer.result().json()["usage"]["completion_tokens"] == 600
    assert server.wait(20) == 0
    assert server.survivors() == []


# Servers that end in other ways. Each starts in the place of the previous one, as under a supervisor.


@pytest.fixture
def restarted(tmp_path: Path, port: int) -> Iterator[Server]:
    running = Server(
        tmp_path / "log",
        "--ready-seconds",
        "3",
        "--heartbeat-seconds",
        "1",
        "--stuck-seconds",
        "6",
        port=port,
    )
    try:
        running.wait_until_ready()
        assert ask(running.url).status_code == 200
        yield running
    finally:
        running.kill()


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.mark.parametrize("victim", ["EngineCore", "Worker"])
def test_a_killed_engine_ends_the_server(restarted: Server, victim: str) -> None:
    with stream(restarted.url) as events, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, restarted.url, **LONG)
        time.sleep(0.2)
        child(restarted, victim).kill()
        start = time.monotonic()
        with contextlib.suppress(httpx.RemoteProtocolError):
            assert any('"error"' in event for event in events)
        assert waiting.result().status_code in (500, 503)
        assert time.monotonic() - start < 10
    assert restarted.wait(20) == 1
    assert "prismoe: The engine died." in restarted.output
    assert restarted.survivors() == []


def test_an_idle_engine_runs_uncounted_steps_and_a_stuck_one_ends_the_server(
    restarted: Server,
) -> None:
    load = httpx.get(f"{restarted.url}/v1/routing/load").json()
    time.sleep(4)  # Without these steps the server would not be ready after 3 s.
    assert httpx.get(f"{restarted.url}/readyz").status_code == 200
    assert httpx.get(f"{restarted.url}/v1/routing/load").json() == load
    with ThreadPoolExecutor(1) as pool:
        child(restarted, "Worker").suspend()
        waiting = pool.submit(ask, restarted.url)
        until(6, lambda: httpx.get(f"{restarted.url}/readyz").status_code == 503)
        assert httpx.get(f"{restarted.url}/livez").status_code == 200
        assert waiting.result().status_code == 503
    assert restarted.wait(30) == 1
    assert "prismoe: The engine is stuck: it has taken no step for" in restarted.output
    assert restarted.survivors() == []


def test_a_full_disk_stops_nothing_and_a_killed_server_leaves_no_files(tmp_path: Path, port: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # A full file system for all caches.
    script = 'mount -t tmpfs -o size=64k tmpfs "$0" && { head -c 1M /dev/zero > "$0/full"; exec "$@"; }'
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(disk))
    assert subprocess.run([*prefix, "true"]).returncode == 0, "A test can't mount a file system here."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(disk))
        patch.setenv("XDG_CACHE_HOME", str(disk))
        running = Server(tmp_path / "log", port=port, prefix=prefix)
    try:
        running.wait_until_ready()
        assert ask(running.url).status_code == 200
        with stream(running.url):
            assert running.stop(signal.SIGKILL) == -signal.SIGKILL
            start = time.monotonic()
            assert running.survivors() == []
            assert time.monotonic() - start < 5
    finally:
        running.kill()
