"""Starts and ends a server: the engine, the app and the HTTP server, with parts of vLLM's launchers."""

import asyncio
import logging
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial

from fastapi import FastAPI
from vllm.config import ModelConfig
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client_from_engine_args
from vllm.entrypoints.launchers.app import build_app
from vllm.tasks import SupportedTask
from vllm.utils.system_utils import decorate_logs
from vllm.v1.metrics.prometheus import get_prometheus_registry

from prismoe.model_plugins.vllm_seams.check import all_needs, check
from prismoe.model_plugins.vllm_seams.front.answers import salt_requests
from prismoe.model_plugins.vllm_seams.front.engines import stop_hearing
from prismoe.model_plugins.vllm_seams.front.exception_handlers import with_handlers
from prismoe.model_plugins.vllm_seams.front.images import send_images_always
from prismoe.model_plugins.vllm_seams.front.sampling import check_sampling_early
from prismoe.server.access.configured import configured_keys
from prismoe.server.access.gate import Gate
from prismoe.server.access.keys import Keys
from prismoe.server.access.routes import keep_listed_routes, match_whole_paths
from prismoe.server.app import model_routes
from prismoe.server.app.engine import EngineArgs, RoutedEngines, prepare_fork
from prismoe.server.app.error_shape import ErrorShape, tell_validation_errors
from prismoe.server.app.routing_state import init_routing_state
from prismoe.server.errors import EngineFailed, StartRefused, explained
from prismoe.server.health.engine_watch import EngineWatch
from prismoe.server.health.http_server import serve_until
from prismoe.server.health.listener import listening, url_of
from prismoe.server.health.probes import probe_routes
from prismoe.server.health.running_requests import RunningRequests
from prismoe.server.health.starting import answering_while_starting
from prismoe.server.inspector import page as inspector_page
from prismoe.server.inspector import routes as inspection_routes
from prismoe.server.limits.admission import Admission
from prismoe.server.limits.body import BodyLimit
from prismoe.server.logs.error_log import log_faults_alone
from prismoe.server.logs.request_log import RequestLog, count_tokens
from prismoe.server.media.connector import use_media
from prismoe.server.metrics import routes
from prismoe.server.metrics.page import MetricsPage, vllm_tokens
from prismoe.server.metrics.routing_switch import RoutingSwitch
from prismoe.server.refusal import RefusalCounter
from prismoe.server.requests.answer_text import mend_answers
from prismoe.server.requests.guard import RequestGuard
from prismoe.server.requests.routing_choice import RequestCounter
from prismoe.server.requests.served import find_served
from prismoe.server.settings import ServeSettings

logger = logging.getLogger("vllm.prismoe")

ENGINE_END_S = 10


async def run_server(args: Namespace, settings: ServeSettings) -> None:
    """Start the server, serve until a signal, and end the server.

    Raises StartRefused if the server can't start, and EngineFailed if the engine or the HTTP server fails.
    """
    decorate_logs("APIServer", skip_if_decorated=True)
    use_media(settings)
    keys = _keys(args, settings)
    start = time.monotonic()
    with listening(args) as listener:
        logger.info("Loading the model %s.", args.model)
        prepare_fork(listener)
        async with AsyncExitStack() as stack:
            with _start_refused(), answering_while_starting(listener, args, settings):
                check(all_needs())
                engine = await stack.enter_async_context(
                    build_async_engine_client_from_engine_args(EngineArgs.from_cli_args(args))
                )
                app = await build_routed_app(engine, args, settings)
            running = _protect(app, keys, settings)
            polling = asyncio.create_task(app.state.expert_load.poll(settings.expert_load_interval))
            stack.callback(polling.cancel)

            async def end(seconds: float) -> None:
                await running.drain(seconds)
                stop_hearing(engine)
                await asyncio.to_thread(partial(engine.shutdown, timeout=ENGINE_END_S))

            logger.info(
                "Ready after %.0f s at %s: the API is under /v1; there are also /metrics and /inspector.",
                time.monotonic() - start,
                url_of(listener, args),
            )
            failure = await serve_until(app, listener, args, settings, app.state.engine_watch.watch(), end)
        if failure:
            raise EngineFailed(failure)


@contextmanager
def _start_refused() -> Iterator[None]:
    """Raise StartRefused with a sentence for any error in the block."""
    try:
        yield
    except StartRefused:
        raise
    except Exception as error:
        raise StartRefused(f"The engine did not start. {explained(error)}") from error


def _protect(app: FastAPI, keys: Keys | None, settings: ServeSettings) -> RunningRequests:
    """Put prismoe's middleware around the app, the outermost last, and add the probes."""
    # vLLM has already built the middleware stack, so Starlette refuses more middleware.
    checked = BodyLimit(app.middleware_stack or app.build_middleware_stack(), settings)
    running = RunningRequests(Admission(checked, settings))
    app.router.routes.extend(probe_routes(lambda: running.trouble or app.state.engine_watch.trouble))
    match_whole_paths(app)
    gated = running if keys is None else Gate(running, keys, settings.open_metrics)
    model_name = str(app.state.vllm_config.model_config.served_model_name)
    app.middleware_stack = RequestLog(
        ErrorShape(gated), RefusalCounter(get_prometheus_registry(), model_name)
    )
    return running


def _keys(args: Namespace, settings: ServeSettings) -> Keys | None:
    """Return the keys that open the server, and remove vLLM's own keys. Returns None without keys."""
    in_environment = os.environ.pop("VLLM_API_KEY", "")
    secrets = [secret for secret in (args.api_key or [in_environment]) if secret]
    args.api_key = None  # prismoe checks the keys instead. vLLM's own check leaves some routes open.
    host = "localhost" if args.uds else args.host
    try:
        return configured_keys(settings, secrets, host)
    except ValueError as error:
        raise StartRefused(str(error)) from error


def listed_app(
    args: Namespace, tasks: tuple[SupportedTask, ...], model_config: ModelConfig | None = None
) -> FastAPI:
    """Return vLLM's app with its listed routes, and with prismoe's except for the probes and /metrics."""
    with with_handlers(tell_validation_errors):
        app: FastAPI = build_app(args, tasks, model_config)
    keep_listed_routes(app)
    app.state.endpoint_plugins = []  # Their routes have been removed.
    app.include_router(routes.router)
    app.include_router(model_routes.router)
    app.include_router(inspection_routes.router)
    inspector_page.add_to(app)
    return app


async def build_routed_app(engine: EngineClient, args: Namespace, settings: ServeSettings) -> FastAPI:
    """Return vLLM's app with prismoe's routes, metrics and checks.

    Raises StartRefused if the model's routers can't be read.
    """
    tasks = await engine.get_supported_tasks()
    args.middleware = [*args.middleware, f"{RequestGuard.__module__}.{RequestGuard.__name__}"]
    args.log_error_stack = True  # vLLM logs every error; log_faults_alone keeps those of the server.
    app = listed_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    model_routes.hide_folders(app.state.openai_serving_models)
    registry = get_prometheus_registry()
    app.state.engine_watch = EngineWatch(RoutedEngines(engine), lambda: vllm_tokens(registry), settings)
    count_tokens(engine)
    mend_answers(engine)
    send_images_always(engine)
    check_sampling_early(engine, tasks)
    log_faults_alone(engine.renderer)
    try:
        metrics = await init_routing_state(app.state, engine, registry, settings)
    except Exception as error:
        raise StartRefused(f"{args.model} has no routers that prismoe can read. {error}") from error
    app.state.served = await find_served(engine, app.state.openai_serving_chat)
    model_name = str(engine.model_config.served_model_name)
    app.state.requests = RequestCounter(registry, model_name)
    if app.state.routing.switchable:
        switch = RoutingSwitch(RoutedEngines(engine), app.state.routing, registry, model_name)
        app.state.routing_switch = switch
        salt_requests(engine, switch.salted)
    MetricsPage(registry, metrics).add_to(app)
    return app
