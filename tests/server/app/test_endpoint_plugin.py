"""The endpoint plugin if the load can't be read: the server is vLLM's, and reports the reason."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from prismoe.model_plugins.worker.engine_options import ROUTED_WORKER
from prismoe.server.app import endpoint_plugin
from prismoe.server.app.endpoint_plugin import NO_LOAD, RoutingEndpoints


def engine(worker: str) -> Any:
    """An engine with this worker that answers no RPC."""
    return SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(worker_cls=worker)))


@pytest.mark.parametrize("worker", ["another.Worker", ROUTED_WORKER])
def test_routes_without_a_readable_load_say_so(worker: str) -> None:
    app = FastAPI()
    app.state.args = SimpleNamespace(additional_config={"prismoe": {"routes": True}})
    plugin = RoutingEndpoints()
    plugin.attach_router(app)
    asyncio.run(plugin.init_state(engine(worker), app.state, app.state.args))
    with TestClient(app) as http:
        page = http.get("/metrics")
        assert page.status_code == 200 and "prismoe_" not in page.text
        for path in ("/v1/routing", "/v1/routing/load", "/v1/routing/inspect"):
            refused = http.get(path)
            assert (refused.status_code, refused.json()["detail"]) == (503, NO_LOAD)


def test_the_log_has_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(endpoint_plugin.logger, "error", lambda text, *values: said.append(text % values))
    app = FastAPI()
    app.state.args = SimpleNamespace(additional_config=None)
    plugin = RoutingEndpoints()
    plugin.attach_router(app)
    asyncio.run(plugin.init_state(engine(ROUTED_WORKER), app.state, app.state.args))
    [sentence] = said
    assert sentence.startswith("The expert load can't be read, so /metrics leaves it out.")
