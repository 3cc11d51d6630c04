"""Checks the key of each request."""

from http import HTTPStatus

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from prismoe.server.access.keys import Key, Keys
from prismoe.server.access.routes import METRICS, is_open, may_use
from prismoe.server.refusal import Refusal, refuse

UNKNOWN = Refusal(
    HTTPStatus.UNAUTHORIZED,
    "key",
    "This server requires a valid API key: send it as `Authorization: Bearer KEY`.",
)
WRONG_ROLE = Refusal(
    HTTPStatus.FORBIDDEN, "role", "The role of this key does not allow this route: use a key of another role."
)


class Gate:
    """ASGI middleware that requires a key on every route that is not listed as open.

    It checks the same path that Starlette's router matches, never a URL built from headers
    (CVE-2026-48746). It stores the key in `scope["prismoe.key"]`.
    """

    def __init__(self, app: ASGIApp, keys: Keys, open_metrics: bool) -> None:
        self._app = app
        self._keys = keys
        self._open_metrics = open_metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with 401 or 403."""
        if scope["type"] == "lifespan" or self._passes_without_key(scope):
            await self._app(scope, receive, send)
        elif (key := self._key(scope)) is None:
            await refuse(UNKNOWN, scope, send)
        elif not may_use(key.role, get_route_path(scope)):
            scope["prismoe.key"] = key
            await refuse(WRONG_ROLE, scope, send)
        else:
            scope["prismoe.key"] = key
            await self._app(scope, receive, send)

    def _passes_without_key(self, scope: Scope) -> bool:
        path = get_route_path(scope)
        if scope["type"] != "http":
            return False
        reads = scope["method"] in ("GET", "HEAD")
        return (reads and (is_open(path) or (self._open_metrics and path == METRICS))) or _is_preflight(scope)

    def _key(self, scope: Scope) -> Key | None:
        headers = Headers(scope=scope)
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._keys.find(token.strip())
        token = headers.get("x-api-key", "")  # as Anthropic's clients send it
        return self._keys.find(token) if token else None


def _is_preflight(scope: Scope) -> bool:
    """Return whether this is a browser's CORS preflight request, which vLLM's CORS middleware answers."""
    headers = Headers(scope=scope)
    return scope["method"] == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers
