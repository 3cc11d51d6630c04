"""Starts that fail after the engine is ready, without an engine."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI

from prismoe.server.access.routes import keep_listed_routes
from prismoe.server.app import launch
from prismoe.server.commands.vllm_arguments import parse_vllm_arguments
from prismoe.server.errors import StartRefused
from prismoe.server.settings import ServeSettings


@asynccontextmanager
async def no_engine(_: Any) -> AsyncIterator[None]:
    yield


async def app_without_routes(*_: Any) -> FastAPI:
    app = FastAPI()
    keep_listed_routes(app)
    return app


def test_a_vllm_without_the_routes_stops_the_start_with_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no traceback: `prismoe serve` prints only the message."""
    settings = ServeSettings(engine_options=("--port", "0", "--host", "127.0.0.1"))
    for name in ("decorate_logs", "prepare_fork", "use_media"):  # These functions change this process.
        monkeypatch.setattr(launch, name, lambda *_, **__: None)
    monkeypatch.setattr(launch, "build_async_engine_client_from_engine_args", no_engine)
    monkeypatch.setattr(launch, "build_routed_app", app_without_routes)
    sentence = "The engine did not start. vLLM lacks routes that prismoe expects: /detokenize, "
    with pytest.raises(StartRefused, match=f"^{re.escape(sentence)}.*Install the version of vLLM"):
        asyncio.run(launch.run_server(parse_vllm_arguments(settings), settings))
