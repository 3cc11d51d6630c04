"""The probes `/livez`, `/readyz` and `/health`: whether the server is live, and whether it is ready."""

from collections.abc import Callable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def probe_routes(trouble: Callable[[], str | None]) -> list[Route]:
    """Return the routes of the probes. `trouble` returns why the server is not ready; None if it is ready.

    /health answers like /readyz: vLLM's router and other programs ask for readiness by that name.
    """

    async def live(request: Request) -> JSONResponse:
        return JSONResponse({"status": "live"})

    async def ready(request: Request) -> JSONResponse:
        if sentence := trouble():
            return JSONResponse({"status": "not ready", "why": sentence}, HTTPStatus.SERVICE_UNAVAILABLE)
        return JSONResponse({"status": "ready"})

    return [Route("/livez", live), Route("/readyz", ready), Route("/health", ready)]
