"""The server's answers while its engine starts: it is live, but not ready, and clients must try again.

Without them requests would wait for as long as the start takes, because the socket listens from the
beginning.
"""

import contextlib
import os
import socket
import threading
from argparse import Namespace
from collections.abc import Iterator
from http import HTTPStatus

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismoe.server.errors import StartRefused
from prismoe.server.health.http_server import uvicorn_config
from prismoe.server.health.probes import probe_routes
from prismoe.server.limits.settings import LimitSettings
from prismoe.server.logs.request_log import take_request_id, with_request_id
from prismoe.server.refusal import Refusal, refuse

STARTING = Refusal(
    HTTPStatus.SERVICE_UNAVAILABLE, "starting", "The server is starting: try again in a moment.", 10
)
END_LIMIT_S = 5


@contextlib.contextmanager
def answering_while_starting(
    listener: socket.socket, args: Namespace, limits: LimitSettings
) -> Iterator[None]:
    """Answer on this socket from a thread while the block starts the engine. These requests are not logged.

    Raises StartRefused if the TLS certificate or key can't be read.
    """
    config = uvicorn_config(
        starting_app(),
        args,
        limits,
        headers=[("connection", "close")],  # The client's next request then reaches the real server.
        lifespan="off",
        log_config=None,
        log_level="critical",
        timeout_graceful_shutdown=1,
    )
    try:
        config.load()
    except (OSError, AssertionError) as error:
        raise StartRefused(
            f"The files of --ssl-certfile and --ssl-keyfile can't be used ({error}): name a certificate and "
            "its key, in PEM format."
        ) from error
    server, duplicate = uvicorn.Server(config), listener.dup()

    def after_fork() -> None:
        duplicate.close()
        for connection in server.server_state.connections:
            os.close(connection.transport.get_extra_info("socket").fileno())

    os.register_at_fork(after_in_child=after_fork)
    thread = threading.Thread(target=server.run, args=([duplicate],), name="starting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(END_LIMIT_S)


def starting_app() -> ASGIApp:
    """Return the app that answers the probes, and refuses all other requests with STARTING."""

    async def refuse_all(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(STARTING, scope, send)

    app = Starlette(routes=[*probe_routes(lambda: STARTING.message), Mount("/", refuse_all)])

    async def app_with_request_id(scope: Scope, receive: Receive, send: Send) -> None:
        request_id = take_request_id(scope)

        async def send_with_request_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = with_request_id(message["headers"], request_id)
            await send(message)

        await app(scope, receive, send_with_request_id)

    return app_with_request_id
