"""How many requests may be under way, in all and of one key."""

from collections import Counter
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismoe.server.access.keys import Key
from prismoe.server.limits.settings import LimitSettings
from prismoe.server.refusal import Refusal, refuse

RETRY_S = 1

BUSY = Refusal(
    HTTPStatus.TOO_MANY_REQUESTS, "busy", "The server has too many requests: ask again in a moment.", RETRY_S
)
KEY_BUSY = Refusal(
    HTTPStatus.TOO_MANY_REQUESTS,
    "key_busy",
    "Too many requests of your key are under way: wait until one is answered.",
    RETRY_S,
)


class Admission:
    """ASGI middleware that refuses what is too much. Only POST requests make work that lasts.

    Where vLLM refuses with 429, as for want of memory for images, it adds when to ask again.
    """

    def __init__(self, app: ASGIApp, settings: LimitSettings) -> None:
        self._app = app
        self._most = settings.max_requests
        self._most_per_key = settings.max_requests_per_key
        self._under_way = 0
        self._of_key: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if there is room for it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        key: Key | None = scope.get("prismoe.key")
        if self._under_way >= self._most:
            await refuse(BUSY, scope, send)
        elif key is not None and self._of_key[key.name] >= self._most_per_key:
            await refuse(KEY_BUSY, scope, send)
        else:
            await self._admit(key, scope, receive, send)

    async def _admit(self, key: Key | None, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_say_when(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.TOO_MANY_REQUESTS:
                MutableHeaders(scope=message).setdefault("retry-after", str(RETRY_S))
            await send(message)

        self._under_way += 1
        if key is not None:
            self._of_key[key.name] += 1
        try:
            await self._app(scope, receive, send_and_say_when)
        finally:
            self._under_way -= 1
            if key is not None:
                self._of_key[key.name] -= 1
                if not self._of_key[key.name]:
                    del self._of_key[key.name]  # Names come and go with the file of keys.
