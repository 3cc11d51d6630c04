"""A middleware for test servers that lists the app's routes."""

from typing import Any

from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

HEADER = "list-routes"


class RouteLister:
    """Answers a request with the header with all methods and paths of the app's router.

    `/folder/*` stands for all paths in a folder.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if HEADER.encode() not in dict(scope.get("headers", ())):
            await self._app(scope, receive, send)
            return
        listed = [entry for route in scope["app"].router.routes for entry in _entries(route)]
        await JSONResponse(listed)(scope, receive, send)


def _entries(route: Any) -> list[tuple[str, str]]:
    if isinstance(route, Mount):
        return [("GET", f"{route.path}/*")]
    return [(method, route.path) for method in route.methods]
