"""An endpoint plugin that adds prismoe's metrics and routes to vLLM's own API server."""

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

NO_LOAD = "This server can't read the expert load: its log says why, at the start."


class RoutingEndpoints:
    """The plugin. If `VLLM_PLUGINS` names prismoe, vLLM loads it once in each API server."""

    name = "prismoe"
    required_tasks: tuple[SupportedTask, ...] = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Replace vLLM's /metrics, and add prismoe's routes if the operator asks for them."""
        self._settings = EngineSettings.of(app.state.args.additional_config)
        self._page = MetricsPage(get_prometheus_registry())
        self._page.add_to(app)
        if self._settings.routes:
            needs_load = [Depends(self._check_load)]
            app.include_router(routes.router, dependencies=needs_load)
            app.include_router(inspection_routes.router, dependencies=needs_load)
            inspector_page.add_to(app)

    async def init_state(self, engine_client: EngineClient, state: Any, args: Namespace) -> None:
        """Start to read the expert load. If that fails, log an error and leave vLLM's server as it is."""
        if engine_client.vllm_config.parallel_config.worker_cls != ROUTED_WORKER:
            return  # The general plugin has logged why.
        settings = self._settings
        try:
            self._page.experts = await init_routing_state(state, engine_client, self._page.registry, settings)
        except Exception as error:
            logger.error("The expert load can't be read, so /metrics leaves it out. %s", error)
            return
        self._polling = asyncio.create_task(state.expert_load.poll(settings.expert_load_interval))

    async def _check_load(self) -> None:
        """Raise HTTPException if the expert load can't be read."""
        if self._page.experts is None:
            raise HTTPException(503, NO_LOAD)
