"""`/livez`, `/readyz` and `/health`: whether to start the server anew, and whether to send it requests."""

from collections.abc import Callable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def probe_routes(trouble: Callable[[], str | None]) -> list[Route]:
    """The probes. `trouble` tells why no requests should be sent here; None where there is no reason.

    /health is the name by which vLLM's router and others ask for readiness.
    """

    async def live(request: Request) -> JSONResponse:
        return JSONResponse({"status": "live"})

    async def ready(request: Request) -> JSONResponse:
        if sentence := trouble():
            return JSONResponse({"status": "not ready", "why": sentence}, HTTPStatus.SERVICE_UNAVAILABLE)
        return JSONResponse({"status": "ready"})

    return [Route("/livez", live), Route("/readyz", ready), Route("/health", ready)]
