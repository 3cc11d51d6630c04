"""The keys that each request needs, on the real app of vLLM and prismoe without an engine.

CVE-2026-48746: vLLM checked the key for a URL that it rebuilt from the Host header. Here only the routed path
counts.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Mount
from starlette.types import Message, Scope
from vllm.entrypoints.launchers.app import build_app

from prismoe.server.access.gate import Gate
from prismoe.server.access.keys import Key, KeyRing, Role
from prismoe.server.access.routes import (
    OPEN,
    ROUTES,
    VLLM_ROUTES,
    keep_listed_routes,
    match_whole_paths,
    route_label,
)
from prismoe.server.commands.vllm_arguments import parse_vllm_arguments
from prismoe.server.health.probes import probe_routes
from prismoe.server.inspector import page as inspector_page
from prismoe.server.inspector import routes as inspection_routes
from prismoe.server.metrics import routes
from prismoe.server.settings import ServeSettings

CLIENT, METRICS, ADMIN = "the-key-of-a-client", "the-key-of-prometheus", "the-key-of-an-administrator"
KEYS = KeyRing(
    [
        Key.of("alice", Role.CLIENT, CLIENT),
        Key.of("prometheus", Role.METRICS, METRICS),
        Key.of("root", Role.ADMIN, ADMIN),
    ]
)
PASSED = 299

OTHERS = [
    "/",
    "/docs",
    "/redoc",
    "/load",
    "/ping",
    "/invocations",
    "/pause",
    "/resume",
    "/is_paused",
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/collective_rpc",
    "/server_info",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/start_profile",
    "/stop_profile",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
    "/generative_scoring",
    "/inference/v1/generate",
    "/inference/v1/abort_requests",
    "/v1/chat/completions/render",
    "/v1/completions/derender",
    "/kv_event_sources",
    "/v1/systemone",
    "/tokenizer_info",
    "/v1/responses/resp_1",
    "/update_weights",
    "/init_weight_transfer_engine",
]
"""Routes of vLLM that prismoe does not have. Some exist only in its development mode."""


@pytest.fixture(scope="module")
def app() -> Iterator[FastAPI]:
    """vLLM's app with prismoe's routes, in the development mode, which has the most routes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        options = ("--allowed-origins", '["*"]')
        args = parse_vllm_arguments(ServeSettings(engine_options=options))
        app: FastAPI = build_app(args, ("generate",), None)
        there = {getattr(route, "path", None) for route in app.routes}
        assert {"/collective_rpc", "/pause", "/sleep", "/invocations", "/v1/load_lora_adapter"} <= there
        keep_listed_routes(app)
        app.include_router(routes.router)
        app.include_router(inspection_routes.router)
        inspector_page.add_to(app)
        app.router.routes.extend(probe_routes(lambda: None))
        match_whole_paths(app)
        yield app


def ask(app: Any, path: str, headers: dict[str, str] | None = None, **scope: Any) -> int:
    """Send a request with this decoded path, and return its status."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    lines = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    request: Scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": lines,
        "scheme": "http",
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1),
    } | scope
    asyncio.run(app(request, receive, send))
    return int(sent[0].get("status", sent[0].get("code")))


async def pass_on(scope: Scope, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": PASSED, "headers": []})
    await send({"type": "http.response.body", "body": b""})


GATE = Gate(pass_on, KEYS, open_metrics=False)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_the_app_has_the_listed_routes_and_no_others(app: FastAPI) -> None:
    for route in app.routes:
        path: str = route.path  # type: ignore[attr-defined]
        assert path in ROUTES or path.startswith("/inspector"), path
        assert not isinstance(route, Mount) or path.startswith("/inspector"), path
    paths = {getattr(route, "path", None) for route in app.routes}
    assert paths >= VLLM_ROUTES | OPEN


@pytest.mark.parametrize("path", OTHERS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_routes_of_vllm_do_not_exist(app: FastAPI, path: str, method: str) -> None:
    assert ask(app, path, bearer(CLIENT), method=method) == 404


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_with_a_newline_at_its_end_is_not_a_route(app: FastAPI, method: str) -> None:
    paths: list[str] = [getattr(route, "path", "") for route in app.routes]
    assert {ask(app, path + "\n", method=method) for path in [*paths, "/inspector/main.js"]} == {404}


def test_a_listed_route_that_vllm_lacks_stops_the_start() -> None:
    with pytest.raises(ValueError, match="vLLM lacks routes that prismoe expects: "):
        keep_listed_routes(FastAPI())


def test_every_route_needs_a_key_unless_it_is_listed_as_open(app: FastAPI) -> None:
    for path in [*(ROUTES - OPEN), "/v1/models/", *OTHERS]:
        for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
            assert ask(GATE, path, method=method) == 401, path
            assert ask(GATE, path, bearer("wrong"), method=method) == 401, path
    for path in [*OPEN, "/inspector/main.js"]:
        assert ask(GATE, path) == PASSED


def test_a_key_has_the_rights_of_its_role() -> None:
    assert ask(GATE, "/v1/models", bearer(CLIENT)) == PASSED
    assert ask(GATE, "/v1/messages", {"x-api-key": CLIENT}) == PASSED
    assert ask(GATE, "/v1/models", {"Authorization": f"bearer {CLIENT}"}) == PASSED
    assert ask(GATE, "/metrics", bearer(CLIENT)) == 403
    assert ask(GATE, "/metrics", bearer(METRICS)) == PASSED
    assert ask(GATE, "/v1/routing/load", bearer(METRICS)) == PASSED
    assert ask(GATE, "/v1/chat/completions", bearer(METRICS)) == 403
    in_force = "/v1/routing/in_force"
    assert [ask(GATE, in_force, bearer(key), method="PUT") for key in (CLIENT, METRICS, ADMIN)] == [
        403,
        403,
        PASSED,
    ]
    for path in ("/metrics", "/v1/routing", "/v1/chat/completions", "/tokenize"):
        assert ask(GATE, path, bearer(ADMIN)) == PASSED
    assert ask(GATE, "/v1/models", {"Authorization": CLIENT}) == 401
    assert ask(GATE, "/v1/models", {"Authorization": f"Basic {CLIENT}"}) == 401
    assert ask(GATE, "/v1/models", {"Authorization": "Bearer wrong", "x-api-key": CLIENT}) == 401


@pytest.mark.parametrize("path", ["/livez", "/inspector/x", "/metrics"])
def test_clients_without_a_key_may_read_but_send_no_body(path: str) -> None:
    gate = Gate(pass_on, KEYS, open_metrics=True)
    assert [ask(gate, path, method=method) for method in ("GET", "HEAD", "POST", "PUT")] == [
        PASSED,
        PASSED,
        401,
        401,
    ]


def test_metrics_can_be_opened() -> None:
    gate = Gate(pass_on, KEYS, open_metrics=True)
    assert ask(gate, "/metrics") == PASSED
    assert ask(gate, "/metrics/") == 401


@pytest.mark.parametrize(
    "path",
    [
        "//health",
        "/health/",
        "/Health",
        "/HEALTH",
        "/health\n",
        "/health%2f..%2fv1%2fmodels",
        "/health;/v1/models",
        "/health?/v1/models",
        "/./health",
        "/v1/../health",
        "",
        "/livez/../metrics",
        "/inspectors",
        "/inspecto",
        "\\health",
        "/health\\",
        "/health\x00",
        "/metrics/",
        "/metricsx",
        "//metrics",
        "/inspector\\..\\metrics",
    ],
)
def test_paths_that_resemble_an_open_route_are_closed(path: str) -> None:
    assert ask(GATE, path) == 401


@pytest.mark.parametrize(
    "host", ["x/health?", "127.0.0.1/health?a=", "a/health#", "localhost:8000/livez/../"]
)
def test_cve_2026_48746_the_host_header_opens_nothing(host: str) -> None:
    assert (
        ask(GATE, "/v1/models", {"Host": host, "X-Forwarded-Prefix": "/health", "X-Original-URL": "/health"})
        == 401
    )


def test_a_root_path_is_removed_as_in_the_router(app: FastAPI) -> None:
    assert ask(GATE, "/prismoe/livez", root_path="/prismoe") == PASSED
    assert ask(GATE, "/livez", root_path="/prismoe") == PASSED
    assert ask(GATE, "/prismoe/v1/models", root_path="/prismoe") == 401
    assert ask(GATE, "/livez/v1/models", root_path="/livez") == 401
    # The gate and the router agree about open paths.
    assert ask(app, "/prismoe/livez", root_path="/prismoe") == 200
    assert ask(app, "/livez/v1/models", root_path="/livez", method="DELETE") == 405


def test_the_pages_folder_has_no_way_out(app: FastAPI) -> None:
    for path in (
        "/inspector/../v1/models",
        "/inspector/../../settings.py",
        "/inspector//etc/passwd",
        "/inspector/",
    ):
        assert ask(Gate(app, KEYS, open_metrics=False), path) in (307, 404), path


def test_a_preflight_of_a_browser_is_left_to_cors(app: FastAPI) -> None:
    preflight = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    gate = Gate(app.middleware_stack or app.build_middleware_stack(), KEYS, open_metrics=False)
    assert ask(gate, "/v1/chat/completions", preflight, method="OPTIONS") == 200
    assert ask(gate, "/v1/chat/completions", preflight, method="POST") == 401


def test_by_default_no_other_origin_is_allowed() -> None:
    assert parse_vllm_arguments(ServeSettings()).allowed_origins == []


def test_websockets_are_refused() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/livez", "root_path": "", "headers": []}
    asyncio.run(GATE(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["type"] == "websocket.close"


def test_a_route_has_a_bounded_name() -> None:
    assert route_label("/v1/models") == "/v1/models"
    assert route_label("/inspector/a\nb") == "/inspector/*"
    assert route_label("/v1/models\nstatus=200") == "other"
