"""The limits on the number of requests that run at a time, in all and for each key."""

from collections import Counter
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismoe.server.access.keys import Key
from prismoe.server.limits.settings import LimitSettings
from prismoe.server.refusal import Refusal, refuse

RETRY_S = 1

BUSY = Refusal(
    HTTPStatus.TOO_MANY_REQUESTS, "busy", "The server has too many requests: try again in a moment.", RETRY_S
)
KEY_BUSY = Refusal(
    HTTPStatus.TOO_MANY_REQUESTS,
    "key_busy",
    "Too many requests with your key are running: wait until one is answered.",
    RETRY_S,
)


class Admission:
    """ASGI middleware that limits the POST requests that run at a time. Other requests take little time.

    It also adds a Retry-After header to answers of vLLM with status 429, such as when images need too much
    memory.
    """

    def __init__(self, app: ASGIApp, settings: LimitSettings) -> None:
        self._app = app
        self._max_requests = settings.max_requests
        self._max_per_key = settings.max_requests_per_key
        self._running = 0
        self._running_by_key: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with 429."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        key: Key | None = scope.get("prismoe.key")
        if self._running >= self._max_requests:
            await refuse(BUSY, scope, send)
        elif key is not None and self._running_by_key[key.name] >= self._max_per_key:
            await refuse(KEY_BUSY, scope, send)
        else:
            await self._admit(key, scope, receive, send)

    async def _admit(self, key: Key | None, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_retry_after(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.TOO_MANY_REQUESTS:
                MutableHeaders(scope=message).setdefault("retry-after", str(RETRY_S))
            await send(message)

        self._running += 1
        if key is not None:
            self._running_by_key[key.name] += 1
        try:
            await self._app(scope, receive, send_with_retry_after)
        finally:
            self._running -= 1
            if key is not None:
                self._running_by_key[key.name] -= 1
                if not self._running_by_key[key.name]:
                    del self._running_by_key[key.name]  # The names in the key file change over time.
