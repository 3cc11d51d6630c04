"""The parts that `launch.py` connects, on a server with keys. Another server starts on the same port."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import httpx
import pytest

from prismoe.loadtests.local_server import free_port
from prismoe.server.access.keys import Role, add_key
from tests.paths import REPOSITORY
from tests.server.app.route_lister import HEADER, RouteLister
from tests.server.running import START_LIMIT_S, Server

pytestmark = pytest.mark.server

LIMIT_S = 60
OPTIONS_KEY = "a-key-of-vllms-option"

# method, path, and the status without a key, and with an unknown, a client's and a metrics key.
# A POST has an empty object, so 400 is the route's own answer.
ACCESS = [
    ("GET", "/livez", 200, 200, 200, 200),
    ("GET", "/readyz", 200, 200, 200, 200),
    ("GET", "/health", 200, 200, 200, 200),
    ("GET", "/inspector", 200, 200, 200, 200),
    ("GET", "/inspector/", 307, 307, 307, 307),
    ("GET", "/inspector/main.js", 200, 200, 200, 200),
    ("GET", "/inspector/pictures/pictures.json", 200, 200, 200, 200),
    ("GET", "/metrics", 401, 401, 403, 200),
    ("GET", "/v1/routing", 401, 401, 200, 200),
    ("GET", "/v1/routing/load", 401, 401, 200, 200),
    ("GET", "/v1/routing/inspect", 401, 401, 200, 403),
    ("POST", "/v1/routing/inspect", 401, 401, 400, 403),
    ("PUT", "/v1/routing/in_force", 401, 401, 403, 403),
    ("PATCH", "/v1/routing/thresholds", 401, 401, 403, 403),
    ("GET", "/openapi.json", 401, 401, 200, 403),
    ("GET", "/version", 401, 401, 200, 403),
    ("GET", "/v1/models", 401, 401, 200, 403),
    ("GET", "/v1/models/prismoji", 401, 401, 200, 403),
    ("POST", "/v1/chat/completions", 401, 401, 400, 403),
    ("POST", "/v1/chat/completions/batch", 401, 401, 400, 403),
    ("POST", "/v1/completions", 401, 401, 400, 403),
    ("POST", "/v1/responses", 401, 401, 400, 403),
    ("POST", "/v1/messages", 401, 401, 400, 403),
    ("POST", "/v1/messages/count_tokens", 401, 401, 400, 403),
    ("POST", "/tokenize", 401, 401, 400, 403),
    ("POST", "/detokenize", 401, 401, 400, 403),
    # Does not exist, which only clients with a right to use the server may learn.
    ("GET", "/docs", 401, 401, 404, 403),
    ("GET", "/load", 401, 401, 404, 403),
    ("POST", "/pause", 401, 401, 404, 403),
    ("POST", "/invocations", 401, 401, 404, 403),
    ("GET", "/no/such/route", 401, 401, 404, 403),
    # A method that the route does not have.
    ("POST", "/livez", 401, 401, 405, 403),
    ("POST", "/metrics", 401, 401, 403, 405),
    ("GET", "/v1/chat/completions", 401, 401, 405, 403),
]


@dataclass
class Start:
    """Two servers that started at once on one port, and the port's answers meanwhile."""

    server: Server
    """The server that got the port."""
    other: Server
    meanwhile: set[tuple[str, int]]
    keys: dict[str, str]
    """Four keys by their owners."""
    admin: str


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    folder = tmp_path_factory.mktemp("wiring")
    file = folder / "keys"
    keys = {"none": "", "unknown": "x" * 43, "client": add_key(file, "alice", Role.CLIENT)}
    keys["metrics"] = add_key(file, "prometheus", Role.METRICS)
    admin = add_key(file, "root", Role.ADMIN)
    options = (
        *("--api-keys-file", str(file), "--api-key", OPTIONS_KEY, "--enable-request-id-headers"),
        *("--middleware", f"{RouteLister.__module__}.{RouteLister.__name__}"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY), prepend=":")
        port = free_port()
        servers = [Server(folder / name, *options, port=port) for name in ("first", "second")]
    try:
        meanwhile: set[tuple[str, int]] = set()
        end = time.monotonic() + START_LIMIT_S
        running = servers
        while not servers[0].answers() or len(running) == 2:
            running = [server for server in servers if server.watch()]
            assert running and time.monotonic() < end, [server.output for server in servers]
            meanwhile |= set(answers(servers[0].url))
            time.sleep(0.2)
        [server], [other] = running, [server for server in servers if server not in running]
        yield Start(server, other, meanwhile, keys, admin)
    finally:
        for server in servers:
            server.kill()


def answers(url: str) -> Iterator[tuple[str, int]]:
    """Some paths that answer, with their statuses."""
    for path in ("/livez", "/readyz", "/v1/models"):
        try:
            yield path, httpx.get(url + path, timeout=LIMIT_S).status_code
        except httpx.TransportError:
            continue


def ask(start: Start, method: str, path: str, secret: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    body: dict[str, Any] = {"json": {}} if method == "POST" else {}
    return httpx.request(method, start.server.url + path, headers=headers, timeout=LIMIT_S, **body)


def test_of_two_servers_that_start_at_once_one_ends_with_a_message(start: Start) -> None:
    assert start.other.wait(1) == 1
    assert start.other.survivors() == []
    port = start.server.url.rpartition(":")[2]
    last = start.other.output.rstrip().splitlines()[-1]
    assert last.startswith(f"prismoe: Can't listen on port {port}: ") and last.endswith("with --port.")
    assert "Traceback" not in start.other.output
    assert start.server.answers()


def test_while_it_starts_it_is_alive_and_asks_clients_to_retry(start: Start) -> None:
    assert start.meanwhile >= {("/livez", 200), ("/readyz", 503), ("/v1/models", 503)}


@pytest.mark.parametrize(("method", "path", "none", "unknown", "client", "metrics"), ACCESS)
def test_the_keys_that_may_use_a_route(
    start: Start, method: str, path: str, none: int, unknown: int, client: int, metrics: int
) -> None:
    found = {whose: ask(start, method, path, secret) for whose, secret in start.keys.items()}
    statuses = {whose: answer.status_code for whose, answer in found.items()}
    assert statuses == {"none": none, "unknown": unknown, "client": client, "metrics": metrics}
    for answer in found.values():
        assert len(answer.headers.get_list("x-request-id")) == 1
        assert answer.status_code != 401 or answer.headers["www-authenticate"] == "Bearer"


def test_a_moe_llava_has_nothing_to_switch(start: Start) -> None:
    url, headers = f"{start.server.url}/v1/routing/in_force", {"Authorization": f"Bearer {start.admin}"}
    refused = httpx.put(url, headers=headers, json={"routing": "native"}, timeout=LIMIT_S)
    assert refused.status_code == 409
    assert refused.json()["error"]["message"].startswith(
        "This server's routing can't be changed while it runs: "
    )


@pytest.mark.parametrize(("path", "status"), [("/v1/models", 200), ("/metrics", 403), ("/livez", 200)])
def test_the_key_of_vllms_option_is_a_clients_key(start: Start, path: str, status: int) -> None:
    assert ask(start, "GET", path, OPTIONS_KEY).status_code == status


def test_the_table_has_every_route_of_the_running_server(start: Start) -> None:
    headers = {"Authorization": f"Bearer {start.keys['client']}"}
    with httpx.Client(base_url=start.server.url, headers=headers, timeout=LIMIT_S) as http:
        routed = {(method, path) for method, path in http.get("/", headers={HEADER: ""}).json()}
        described = http.get("/openapi.json").json()["paths"]
    routed |= {(method.upper(), path) for path, methods in described.items() for method in methods}
    routed -= {(method, path) for method, path in routed if method == "HEAD"}  # GET without its body
    assert len(routed) > 20
    for method, template in routed:
        pattern = re.sub(r"{.+?}", "*", template)
        assert any(method == of and fnmatchcase(path, pattern) for of, path, *_ in ACCESS), (method, pattern)


def test_it_ends_in_silence_when_ctrl_c_is_pressed(start: Start) -> None:
    assert start.server.press_ctrl_c() == 0
    assert start.server.survivors() == []
    assert "Traceback" not in start.server.output
