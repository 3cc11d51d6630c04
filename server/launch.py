"""One server's life: the engine, the app on it, and the HTTP server, out of vLLM's launchers."""

import asyncio
import socket
import threading
from argparse import Namespace
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

from fastapi import FastAPI
from vllm import envs
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client_from_engine_args
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.launcher import serve_http, setup_server
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.utils.system_utils import decorate_logs
from vllm.v1.metrics.prometheus import get_prometheus_registry

from prismoe.server import (
    inspection_routes,
    inspector_page,
    media,  # noqa: F401  (registers what fetches images)
    routes,
)
from prismoe.server.engine import EngineArgs, EngineDied, RoutedEngines, StartRefused, prepare_fork
from prismoe.server.inspector import Inspector
from prismoe.server.load_reader import ExpertLoadReader, logger
from prismoe.server.metrics import ExpertMetrics, metrics_route, vllm_tokens
from prismoe.server.request_guard import RequestGuard
from prismoe.server.settings import ServeSettings


async def run_server(args: Namespace, settings: ServeSettings) -> None:
    """Start everything, serve until a signal, and end everything. Raises EngineDied where that ended it."""
    decorate_logs("APIServer", skip_if_decorated=True)
    listener = _listen(args)
    prepare_fork(listener)
    try:
        async with AsyncExitStack() as stack:
            try:
                engine = await stack.enter_async_context(
                    build_async_engine_client_from_engine_args(EngineArgs.from_cli_args(args))
                )
            except (RuntimeError, ValueError, OSError) as error:
                raise StartRefused(f"The engine did not start. {error}") from error
            app = await build_routed_app(engine, args, settings)
            polling = asyncio.create_task(app.state.expert_load.poll(settings.expert_load_interval))
            stack.callback(polling.cancel)
            told_to_end = _note_shutdown(engine)
            shutdown = await _serve_http(app, listener, args)
            engine_died = engine.errored and not told_to_end.is_set()
        await shutdown
        if engine_died:
            raise EngineDied("The engine died. Its error is in the log above.")
    finally:
        listener.close()


async def build_routed_app(engine: EngineClient, args: Namespace, settings: ServeSettings) -> FastAPI:
    """vLLM's app with prismoe's routes, metrics and checks."""
    tasks = await engine.get_supported_tasks()
    args.middleware = [*args.middleware, f"{RequestGuard.__module__}.{RequestGuard.__name__}"]
    app: FastAPI = build_app(args, tasks, engine.model_config)
    app.include_router(routes.router)
    app.include_router(inspection_routes.router)
    inspector_page.add_to(app)
    await init_app_state(engine, app.state, args, tasks)
    app.state.inspector = Inspector(engine, app.state.openai_serving_chat)
    registry = get_prometheus_registry()
    engines = RoutedEngines(engine)
    app.state.expert_load = ExpertLoadReader(engines, lambda: vllm_tokens(registry))
    try:
        await engines.ask("prismoe_reset_expert_load")
        await app.state.expert_load.read()
        app.state.routing = await routes.routing_in_force(engines)
    except Exception as error:
        raise StartRefused(f"{args.model} has no routers that prismoe can read. {error}") from error
    metrics = ExpertMetrics(
        app.state.expert_load,
        app.state.routing,
        str(engine.model_config.served_model_name),
        settings.expert_metrics,
    )
    # In front of vLLM's own /metrics, which it contains.
    app.router.routes.insert(0, metrics_route(registry, metrics))
    logger.info(
        "/metrics exports %d series of prismoe's (--expert-metrics %s).",
        metrics.series,
        settings.expert_metrics,
    )
    return app


def _note_shutdown(engine: EngineClient) -> threading.Event:
    """Set once the engine is told to end, as on a signal: `engine.errored` is true then, too."""
    told_to_end, shutdown = threading.Event(), engine.shutdown

    def note_and_shutdown(*args: Any, **kwargs: Any) -> None:
        told_to_end.set()
        shutdown(*args, **kwargs)

    engine.shutdown = note_and_shutdown  # type: ignore[method-assign]
    return told_to_end


def _listen(args: Namespace) -> socket.socket:
    try:
        listener: socket.socket = setup_server(args, reuse_port=False)[1]
    except OSError as error:
        where = args.uds or f"port {args.port}"
        raise StartRefused(
            f"Can't listen on {where}: {error.strerror}. Choose another with --port."
        ) from error
    return listener


async def _serve_http(app: FastAPI, listener: socket.socket, args: Namespace) -> Coroutine[Any, Any, None]:
    log_config = get_uvicorn_log_config(args)
    uvicorn_options: dict[str, Any] = {} if log_config is None else {"log_config": log_config}
    shutdown: Coroutine[Any, Any, None] = await serve_http(
        app,
        sock=listener,
        enable_ssl_refresh=args.enable_ssl_refresh,
        host=args.host,
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
        h11_max_header_count=args.h11_max_header_count,
        **uvicorn_options,
    )
    return shutdown
