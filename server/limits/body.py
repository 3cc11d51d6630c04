"""How large a request's body may be, and how long it may take to come."""

import asyncio
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismoe.server.limits.settings import LimitSettings
from prismoe.server.refusal import Refusal, refuse

MIB = 2**20
RETRY_S = 1


class Refused(Exception):
    """The body can't be taken."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class BodyLimit:
    """ASGI middleware that reads the whole body first, within bounds on its size, its time and all bodies.

    What comes behind it gets the body in one piece, of which nothing is kept here but its length, and never
    waits for a slow client.
    """

    def __init__(self, app: ASGIApp, settings: LimitSettings) -> None:
        self._app = app
        self._most = settings.max_body_mib * MIB
        self._most_in_all = settings.max_bodies_mib * MIB
        self._seconds = settings.body_seconds
        self._held = 0
        self._too_large = Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "body_size",
            f"The request's body is larger than {settings.max_body_mib} MiB: send fewer or smaller images.",
        )
        self._too_slow = Refusal(
            HTTPStatus.REQUEST_TIMEOUT,
            "body_time",
            f"The request's body did not come within {settings.body_seconds:g} s.",
        )
        self._full = Refusal(
            HTTPStatus.TOO_MANY_REQUESTS,
            "memory",
            "The server holds too many large requests: ask again in a moment.",
            RETRY_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its whole body."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._seconds):
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
            self._held -= length

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._most:
            raise Refused(self._too_large)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            body += piece
            self._held += len(piece)
            if len(body) > self._most:
                raise Refused(self._too_large)
            if self._held > self._most_in_all:
                raise Refused(self._full)
            more = message.get("more_body", False)


class ClientGone(Exception):
    """The client left before its body was there."""


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """A `receive` that gives these messages away, then what comes after them."""

    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    return replay
