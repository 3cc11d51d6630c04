"""The HTTP server from its start to its end: by a signal, or because the engine can't go on."""

import asyncio
import signal
import socket
from argparse import Namespace
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from vllm import envs
from vllm.entrypoints.launchers.launcher import NoSignalServer
from vllm.entrypoints.launchers.utils.server_utils import get_uvicorn_log_config
from vllm.entrypoints.launchers.utils.ssl import SSLCertRefresher

from prismoe.server.limits.connection import BoundedConnection
from prismoe.server.limits.settings import LimitSettings

CLOSE_LIMIT_S = 5
"""Answers that are not sent so long after all else has ended are cut off."""


async def serve_until(
    app: FastAPI,
    listener: socket.socket,
    args: Namespace,
    limits: LimitSettings,
    failure: Awaitable[str],
    end: Callable[[float], Awaitable[None]],
) -> str | None:
    """Serve until a signal or a failure. The failure, in a sentence; None on a signal.

    Before the server closes, `end` gives the requests under way so many seconds, and the rest an answer.
    """
    config = _uvicorn_config(app, args, limits)
    config.load()
    server = NoSignalServer(config)
    app.state.server = server  # vLLM's error handlers tell it to end where the engine is dead.
    refresher = (
        SSLCertRefresher(config.ssl, args.ssl_keyfile, args.ssl_certfile, args.ssl_ca_certs)
        if args.enable_ssl_refresh and config.ssl is not None
        else None
    )
    told_to_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, told_to_end.set)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    signalled = asyncio.create_task(told_to_end.wait())
    failing = asyncio.ensure_future(failure)
    try:
        await asyncio.wait((serving, signalled, failing), return_when=asyncio.FIRST_COMPLETED)
        failed = not signalled.done()
        await end(0 if failed else args.shutdown_timeout)
        server.should_exit = True
        await serving
        # vLLM's error handlers may have noticed the failure first.
        return await failing if failed else None
    finally:
        signalled.cancel()
        failing.cancel()
        if refresher is not None:
            refresher.stop()


def _uvicorn_config(app: FastAPI, args: Namespace, limits: LimitSettings) -> uvicorn.Config:
    log_config = get_uvicorn_log_config(args)
    log_options: dict[str, Any] = {} if log_config is None else {"log_config": log_config}
    return uvicorn.Config(
        app,
        http=partial(BoundedConnection, limits),  # type: ignore[arg-type]  # uvicorn calls it as a class
        host=args.host,
        port=args.port,
        log_level=args.uvicorn_log_level,
        access_log=False,  # `RequestLog` writes a line that says more.
        timeout_keep_alive=envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
        timeout_graceful_shutdown=CLOSE_LIMIT_S,
        ws="none",
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        **log_options,
    )
