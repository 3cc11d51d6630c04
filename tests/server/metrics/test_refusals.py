"""Every kind of refusal by the real middlewares appears in the operators' panel, without an engine."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import yaml
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from prismoe.benchmarks.monitoring.dashboards import with_variables
from prismoe.benchmarks.monitoring.prometheus import DEPLOY, program
from prismoe.server.access.keys import Key, KeyRing, Role
from prismoe.server.app import launch
from prismoe.server.health.running_requests import RunningRequests
from prismoe.server.metrics.page import MetricsPage
from prismoe.server.settings import ServeSettings

CHAT = "/v1/chat/completions"
CLIENTS = ("alice", "bob", "carol", "dave")
KEYS = KeyRing(
    [*(Key.of(name, Role.CLIENT, name) for name in CLIENTS), Key.of("prometheus", Role.METRICS, "prometheus")]
)
LIMITS = ServeSettings(
    max_requests=4, max_requests_per_key=2, max_body_mib=1, max_bodies_mib=1, body_seconds=0.02
)
KIB = 1024
TIMES = 10
STATUSES = {
    "key": 401,
    "role": 403,
    "body_time": 408,
    "body_size": 413,
    "busy": 429,
    "key_busy": 429,
    "memory": 429,
    "draining": 503,
}


class Server:
    """prismoe's middlewares around an app that holds requests until they are released."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        registry = CollectorRegistry()
        monkeypatch.setattr(launch, "get_prometheus_registry", lambda: registry)
        app = FastAPI()
        app.post(CHAT)(self._answer)
        MetricsPage(registry).add_to(app)
        app.state.vllm_config = SimpleNamespace(model_config=SimpleNamespace(served_model_name="prismoji"))
        self.running: RunningRequests = launch._protect(app, KEYS, LIMITS)
        self.go = asyncio.Event()
        self.held = 0
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")

    async def _answer(self, request: Request) -> None:
        self.held += 1
        await self.go.wait()

    async def ask(self, key: str | None, body: bytes | AsyncIterator[bytes] = b"{}") -> int:
        """Send a request, and return the status of its answer."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return (await self._http.post(CHAT, headers=headers, content=body)).status_code

    async def hold(self, key: str, body: bytes = b"{}") -> "asyncio.Task[int]":
        """Start a request that keeps running."""
        held, task = self.held, asyncio.create_task(self.ask(key, body))
        while self.held == held:
            await asyncio.sleep(0)
        return task

    async def scrape(self) -> dict[str, float]:
        """The refusals by reason, as Prometheus reads them."""
        page = await self._http.get("/metrics", headers={"Authorization": "Bearer prometheus"})
        families = {family.name: family for family in text_string_to_metric_families(page.text)}
        refused = families["prismoe_refused_requests"].samples
        assert {sample.labels["model_name"] for sample in refused} == {"prismoji"}
        return {sample.labels["reason"]: sample.value for sample in refused}


async def slow() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.Event().wait()


async def refuse_each(server: Server) -> dict[str, set[int]]:
    """Send ten requests for each kind of refusal, and return their statuses."""
    statuses: dict[str, set[int]] = {}

    async def ten(reason: str, ask: Callable[[], Awaitable[int]]) -> None:
        statuses[reason] = {await ask() for _ in range(TIMES)}

    await ten("key", lambda: server.ask(None))
    await ten("role", lambda: server.ask("prometheus"))
    await ten("body_size", lambda: server.ask("alice", bytes(1025 * KIB)))
    await ten("body_time", lambda: server.ask("alice", slow()))
    running = [
        await server.hold("alice"),
        await server.hold("alice"),
        await server.hold("bob", bytes(900 * KIB)),
    ]
    await ten("key_busy", lambda: server.ask("alice"))
    await ten("memory", lambda: server.ask("carol", bytes(200 * KIB)))
    running.append(await server.hold("carol"))
    await ten("busy", lambda: server.ask("dave"))
    server.go.set()
    assert await asyncio.gather(*running) == [200] * 4
    await server.running.drain(0)
    await ten("draining", lambda: server.ask("dave"))
    return statuses


def panel_query() -> str:
    """The query of the panel for refusals."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "serving.json").read_text())
    [panel] = [panel for panel in dashboard["panels"] if panel["title"] == "Refused requests"]
    [target] = panel["targets"]
    return with_variables(target["expr"], "5m")


@pytest.mark.prometheus
def test_ten_refusals_of_each_kind_are_in_the_panels_query(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def scrapes() -> tuple[dict[str, float], dict[str, float]]:
        server = Server(monkeypatch)
        before = await server.scrape()
        assert await refuse_each(server) == {reason: {status} for reason, status in STATUSES.items()}
        return before, await server.scrape()

    before, after = asyncio.run(scrapes())
    assert before.keys() == after.keys() == STATUSES.keys()
    name = 'prismoe_refused_requests_total{job="prismoe", model_name="prismoji", reason="%s"}'
    series = [{"series": name % reason, "values": f"{before[reason]} {after[reason]}"} for reason in STATUSES]
    expected = [{"labels": f'{{reason="{reason}"}}', "value": 10} for reason in STATUSES]
    in_five_minutes = {
        "expr": f"round(300 * ({panel_query()}), 0.001)",
        "eval_time": "1m",
        "exp_samples": expected,
    }
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [in_five_minutes]}
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"tests": [test]}))
    run = subprocess.run(
        [program("promtool"), "test", "rules", file], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stdout + run.stderr
