"""The limits on a request's body: its size, the time that it takes to arrive, and the size of all bodies."""

import asyncio
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismoe.server.limits.settings import LimitSettings
from prismoe.server.refusal import Refusal, refuse

MIB = 2**20
RETRY_S = 1


class Refused(Exception):
    """The body exceeds a limit."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class BodyLimit:
    """ASGI middleware that reads a request's whole body, within the limits, before it passes the request on.

    So the app gets the body in one piece and never waits for a slow client. After passing the body on, this
    middleware keeps only its length.
    """

    def __init__(self, app: ASGIApp, settings: LimitSettings) -> None:
        self._app = app
        self._max_bytes = settings.max_body_mib * MIB
        self._max_total_bytes = settings.max_bodies_mib * MIB
        self._max_seconds = settings.body_seconds
        self._total_bytes = 0
        self._too_large = Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "body_size",
            f"The request's body is larger than {settings.max_body_mib} MiB: send fewer or smaller images.",
        )
        self._too_slow = Refusal(
            HTTPStatus.REQUEST_TIMEOUT,
            "body_time",
            f"The request's body did not arrive within {settings.body_seconds:g} s: send a smaller one.",
        )
        self._full = Refusal(
            HTTPStatus.TOO_MANY_REQUESTS,
            "memory",
            "The server holds too many large requests: try again in a moment.",
            RETRY_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its whole body, or refuse it with 413, 408 or 429."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._max_seconds):
                    await self._read(scope, receive, body)
            except TimeoutError:
                raise Refused(self._too_slow) from None
            finally:
                length = len(body)
            messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
            body.clear()
            await self._app(scope, _replay(messages, receive), send)
        except Refused as refused:
            await refuse(refused.refusal, scope, send)
        except ClientGone:
            pass
        finally:
            self._total_bytes -= length

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise Refused(self._too_large)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            body += piece
            self._total_bytes += len(piece)
            if len(body) > self._max_bytes:
                raise Refused(self._too_large)
            if self._total_bytes > self._max_total_bytes:
                raise Refused(self._full)
            more = message.get("more_body", False)


class ClientGone(Exception):
    """The client closed the connection before its whole body arrived."""


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """Return a `receive` that returns these messages first, without keeping them, then those of `receive`."""

    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    return replay
