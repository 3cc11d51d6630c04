"""The HTTP server: it runs until a signal, or until the engine fails."""

import asyncio
import logging
import signal
import socket
from argparse import Namespace
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp
from vllm import envs
from vllm.entrypoints.launchers.launcher import NoSignalServer
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.entrypoints.launchers.utils.ssl import SSLCertRefresher

from prismoe.server.limits.connection import BoundedConnection
from prismoe.server.limits.settings import LimitSettings

logger = logging.getLogger("vllm.prismoe")

NOTICE_S = 2
"""The time in which a dead engine is noticed (`EngineWatch.watch` checks twice a second)."""
CLOSE_LIMIT_S = 5
"""The time that unsent answers have after everything else has ended. Then their connections close."""


async def serve_until(
    app: FastAPI,
    listener: socket.socket,
    args: Namespace,
    limits: LimitSettings,
    failure: Awaitable[str],
    end: Callable[[float], Awaitable[None]],
) -> str | None:
    """Serve until a signal or a failure. Returns None after a signal, and a sentence after a failure.

    `failure` is awaited for the engine's failures; an HTTP server that ends by itself is a failure, too.
    Before the server closes, `end(seconds)` gives the running requests that time and answers the rest.
    """
    options: dict[str, Any] = {
        "log_level": args.uvicorn_log_level,
        "timeout_graceful_shutdown": CLOSE_LIMIT_S,
    }
    if getattr(args, "log_config_file", None):
        # vLLM has applied the file. Applied again, it would replace the handlers without their filters.
        options["log_config"] = None
    elif (log_config := get_uvicorn_log_config(args)) is not None:
        options["log_config"] = log_config
    config = uvicorn_config(app, args, limits, **options)
    config.load()
    server = NoSignalServer(config)
    app.state.server = server  # vLLM's error handlers end it if the engine is dead.
    refresher = (
        SSLCertRefresher(config.ssl, args.ssl_keyfile, args.ssl_certfile, args.ssl_ca_certs)
        if args.enable_ssl_refresh and config.ssl is not None
        else None
    )
    signal_received = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, signal_received.set)
    serving = asyncio.create_task(_serve(server, listener))
    signalled: asyncio.Future[Any] = asyncio.create_task(signal_received.wait())
    failing = asyncio.ensure_future(failure)
    try:
        await asyncio.wait((serving, signalled, failing), return_when=asyncio.FIRST_COMPLETED)
        if serving.done() and not signalled.done():
            # vLLM's error handlers may end the server before `failure` has noticed the dead engine.
            await asyncio.wait((failing,), timeout=NOTICE_S)
        cause = next(task for task in (signalled, failing, serving) if task.done())
        await end(args.shutdown_timeout if cause is signalled else 0)
        server.should_exit = True
        await serving
        return None if cause is signalled else cause.result()
    finally:
        signalled.cancel()
        failing.cancel()
        if refresher is not None:
            refresher.stop()


async def _serve(server: uvicorn.Server, listener: socket.socket) -> str:
    """Serve until `server.should_exit` is set. Returns a sentence for a server that ended by itself."""
    try:
        await server.serve(sockets=[listener])
    except (Exception, SystemExit):  # uvicorn raises SystemExit if the app's start fails.
        logger.exception("The HTTP server failed.")
        return "The HTTP server failed. Its error is in the log above."
    return "The HTTP server ended by itself."


def uvicorn_config(app: ASGIApp, args: Namespace, limits: LimitSettings, **options: Any) -> uvicorn.Config:
    """Return uvicorn's configuration, made of vLLM's options, the connection's limits, and more `options`."""
    return uvicorn.Config(
        app,
        http=partial(BoundedConnection, limits),  # type: ignore[arg-type]  # uvicorn calls it as a class
        host=args.host,
        port=args.port,
        access_log=False,  # `RequestLog` writes a better line.
        timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        ws="none",
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        **options,
    )
