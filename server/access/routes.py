"""Every route that the server has, and who may use it. What is not listed is not there."""

import re
from typing import Any

from fastapi import FastAPI

from prismoe.server.access.keys import Role

VLLM_ROUTES = frozenset(
    {
        "/tokenize",
        "/detokenize",
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/responses",
        "/version",
    }
)
"""What is kept of vLLM's API. Its other routes pause, scale, profile or load, or are copies of these."""
DESCRIPTION = "/openapi.json"
"""The API's description, which vLLM leaves out with --disable-fastapi-docs."""

OPEN = frozenset({"/livez", "/readyz", "/health", "/inspector"})
"""Routes that need no key: the probes, and the inspector's page, which asks for a key once it is there."""
OPEN_FOLDER = "/inspector/"
"""The page's files."""

METRICS = "/metrics"
WATCHED = frozenset({METRICS, "/v1/routing", "/v1/routing/load"})
"""What a key for metrics opens."""

ADMINISTERED = frozenset({"/v1/routing/in_force", "/v1/routing/thresholds"})
"""What only an administrator's key opens."""

ROUTES = VLLM_ROUTES | OPEN | WATCHED | ADMINISTERED | {DESCRIPTION, "/v1/routing/inspect"}


def keep_listed_routes(app: FastAPI) -> None:
    """Take every route that is not listed from vLLM's app. Raises ValueError where it lacks a listed one."""
    listed = VLLM_ROUTES | {DESCRIPTION}
    kept = [route for route in app.router.routes if getattr(route, "path", None) in listed]
    if missing := VLLM_ROUTES - {getattr(route, "path", None) for route in kept}:
        raise ValueError(
            f"vLLM lacks routes that prismoe expects: {', '.join(sorted(missing))}. Install the version of "
            "vLLM that prismoe names: pip install prismoe[cpu] or prismoe[cuda]."
        )
    app.router.routes[:] = kept


def match_whole_paths(app: FastAPI) -> None:
    """Have the router take a path for a route only where it is the route's to the last character.

    Starlette's patterns end in $, which takes a newline behind the path, too: log and counters would not.
    """
    route: Any
    for route in app.router.routes:
        route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z")


def is_open(path: str) -> bool:
    """Whether a path needs no key."""
    return path in OPEN or path.startswith(OPEN_FOLDER)


def route_label(path: str) -> str:
    """A route's name out of a bounded set, for logs: a path may hold anything."""
    if path in ROUTES:
        return path
    return OPEN_FOLDER + "*" if path.startswith(OPEN_FOLDER) else "other"


def may_use(role: Role, path: str) -> bool:
    """Whether a key opens a path that is not open."""
    match role:
        case Role.ADMIN:
            return True
        case Role.METRICS:
            return path in WATCHED
        case Role.CLIENT:
            return path != METRICS and path not in ADMINISTERED
