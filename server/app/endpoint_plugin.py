"""prismoe's metrics and routes in vLLM's own API server, as an endpoint plugin."""

import asyncio
from argparse import Namespace
from typing import Any

from fastapi import Depends, FastAPI, HTTPException
from vllm.engine.protocol import EngineClient
from vllm.logger import init_logger
from vllm.tasks import SupportedTask
from vllm.v1.metrics.prometheus import get_prometheus_registry

from prismoe.model_plugins.worker.engine_options import ROUTED_WORKER
from prismoe.model_plugins.worker.settings import EngineSettings
from prismoe.server.app.routing_state import init_routing_state
from prismoe.server.inspector import page as inspector_page
from prismoe.server.inspector import routes as inspection_routes
from prismoe.server.metrics import routes
from prismoe.server.metrics.page import MetricsPage

logger = init_logger("vllm.prismoe.plugin")

UNREAD = "This server reads no expert load: its log says why at the start."


class RoutingEndpoints:
    """vLLM loads it where `VLLM_PLUGINS` names prismoe, once in each API server."""

    name = "prismoe"
    required_tasks: tuple[SupportedTask, ...] = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Put /metrics in place of vLLM's, and the routes that the operator asked for beside it."""
        self._settings = EngineSettings.of(app.state.args.additional_config)
        self._page = MetricsPage(get_prometheus_registry())
        self._page.add_to(app)
        if self._settings.routes:
            there = [Depends(self._check_read)]
            app.include_router(routes.router, dependencies=there)
            app.include_router(inspection_routes.router, dependencies=there)
            inspector_page.add_to(app)

    async def init_state(self, engine_client: EngineClient, state: Any, args: Namespace) -> None:
        """Read the load from now on. Where that can't be, the server is vLLM's, and a sentence says so."""
        if engine_client.vllm_config.parallel_config.worker_cls != ROUTED_WORKER:
            return  # and the general plugin has said why
        settings = self._settings
        try:
            self._page.experts = await init_routing_state(state, engine_client, self._page.registry, settings)
        except Exception as error:
            logger.error("The expert load can't be read, so /metrics has none of it. %s", error)
            return
        self._polling = asyncio.create_task(state.expert_load.poll(settings.expert_load_interval))

    async def _check_read(self) -> None:
        """Raise HTTPException where there is no load to tell of."""
        if self._page.experts is None:
            raise HTTPException(503, UNREAD)
