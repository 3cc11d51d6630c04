"""`GET /inspector`, a page that shows the routing of a picture. It loads files only from this server."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.responses import Response
from starlette.types import Scope

from prismoe.model_plugins.files.bundled import bundled_checkpoint

FILES = Path(__file__).parent / "static"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class PageFiles(StaticFiles):
    """Static files with the page's headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file at `path`."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_to(app: FastAPI) -> None:
    """Add the page and prismoe's pictures to an app. All links on the page are relative to /inspector."""

    @app.get("/inspector", include_in_schema=False)
    async def inspector() -> FileResponse:
        return FileResponse(FILES / "inspector.html", headers=HEADERS)

    @app.get("/inspector/", include_in_schema=False)
    async def inspector_with_slash() -> RedirectResponse:
        return RedirectResponse("../inspector", headers=HEADERS)

    app.mount("/inspector/pictures", PageFiles(directory=bundled_checkpoint() / "pictures"))
    app.mount("/inspector", PageFiles(directory=FILES))
