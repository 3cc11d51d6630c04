"""Prints docs/reference/routes.md, from the routes of the server's app (`make reference`)."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.routing import Mount
from vllm.utils.argparse_utils import FlexibleArgumentParser

from prismoe.model_plugins.vllm_seams.front.cli_args import make_arg_parser
from prismoe.server.access.keys import Role
from prismoe.server.access.routes import DESCRIPTION, METRICS, VLLM_ROUTES, is_open, may_use
from prismoe.server.app.launch import listed_app
from prismoe.server.health.probes import probe_routes
from prismoe.server.metrics.page import MetricsPage

START = """\
# Routes

`make reference` makes this page from the app of `prismoe serve`. The server has no other routes. A running
server describes the bodies at `/openapi.json`. *Key* says which [roles](../operations.md#keys) open a route
if the server has keys. vLLM's routes take [the same requests as in vLLM][vllm], within the
[limits](../operations.md#limits). [Your own `vllm serve`](../plugin.md) has `/metrics`. It has `/v1/routing`,
`/v1/routing/load`, `/v1/routing/inspect` and `/inspector` if you ask for them.

[vllm]: https://docs.vllm.ai/en/stable/serving/openai_compatible_server/

| route | method | key | what |
| --- | --- | --- | --- |
"""

UNDESCRIBED = {
    DESCRIPTION: "The OpenAPI description of the API.",
    METRICS: "[Metrics](../metrics.md) for Prometheus.",
    "/livez": "Return whether the HTTP server answers.",
    "/readyz": "Return whether the server is ready: its engine takes steps, and it is not about to end.",
    "/health": "The same as `/readyz`, under another name.",
    "/inspector": "[The inspector's](../inspector.md) page.",
    "/inspector/": "Redirects to `/inspector`.",
    "/inspector/*": "The files of the inspector's page.",
}
"""Descriptions of the routes that the OpenAPI description leaves out."""


def page() -> str:
    """Return the page's text."""
    return START + "".join(f"| {' | '.join(row)} |\n" for row in sorted(_rows(app_without_engine())))


def app_without_engine() -> FastAPI:
    """Return an app with all routes of the server. They can't answer requests."""
    app = listed_app(make_arg_parser(FlexibleArgumentParser()).parse_args([]), ("generate",))
    MetricsPage(CollectorRegistry()).add_to(app)
    app.router.routes.extend(probe_routes(lambda: None))
    return app


def _rows(app: FastAPI) -> Iterator[tuple[str, str, str, str]]:
    described = app.openapi()["paths"]
    route: Any
    for route in app.router.routes:
        if isinstance(route, Mount):
            if route.path != "/inspector":
                continue  # This is the folder of pictures inside /inspector.
            path, methods = f"{route.path}/*", ["GET"]
        else:
            path, methods = route.path_format, sorted(route.methods - {"HEAD"})
        for method in methods:
            about = described.get(path, {}).get(method.lower())
            what = UNDESCRIBED[path] if about is None else _what(path, about)
            yield f"`{path}`", method, _keys(path), what


def _what(path: str, about: dict[str, Any]) -> str:
    """Return the first line of the route's description, or the title of a route of vLLM's."""
    if path in VLLM_ROUTES:
        return f"vLLM's: {about['summary'].lower()}."
    return str(about["description"].split("\n")[0])


def _keys(path: str) -> str:
    if is_open(path):
        return "none"
    roles = [role.value for role in Role if may_use(role, path)]
    return "any" if len(roles) == len(Role) else ", ".join(roles)


if __name__ == "__main__":
    print(page(), end="")
