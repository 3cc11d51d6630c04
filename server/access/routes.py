"""The list of all routes of the server, and who may use each. The server has no route that is not listed."""

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
"""The routes that the server keeps of vLLM's. The others pause, scale, profile or load, or repeat these."""
DESCRIPTION = "/openapi.json"
"""The API's OpenAPI description, which vLLM leaves out with --disable-fastapi-docs."""

OPEN = frozenset({"/livez", "/readyz", "/health", "/inspector"})
"""Routes that need no key: the probes and the inspector's page. The page asks for a key once it is loaded."""
OPEN_FOLDER = "/inspector/"
"""The folder of the inspector page's files."""

METRICS = "/metrics"
WATCHED = frozenset({METRICS, "/v1/routing", "/v1/routing/load"})
"""The routes that a key with the role metrics opens."""

ADMINISTERED = frozenset({"/v1/routing/in_force", "/v1/routing/thresholds"})
"""The routes that only an administrator's key opens."""

ROUTES = VLLM_ROUTES | OPEN | WATCHED | ADMINISTERED | {DESCRIPTION, "/v1/routing/inspect"}


def keep_listed_routes(app: FastAPI) -> None:
    """Remove every route that is not listed from vLLM's app. Raises ValueError if it lacks a listed one."""
    listed = VLLM_ROUTES | {DESCRIPTION}
    kept = [route for route in app.router.routes if getattr(route, "path", None) in listed]
    if missing := VLLM_ROUTES - {getattr(route, "path", None) for route in kept}:
        raise ValueError(
            f"vLLM lacks routes that prismoe expects: {', '.join(sorted(missing))}. Install the version of "
            "vLLM that prismoe names: pip install prismoe[cpu] or prismoe[cuda]."
        )
    app.router.routes[:] = kept


def match_whole_paths(app: FastAPI) -> None:
    """Make the router match a route only with its exact path.

    Starlette's patterns end in $, which also matches a newline after the path. Such a path would be routed,
    but the access rules, the log and the counters would not recognise it.
    """
    route: Any
    for route in app.router.routes:
        route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z")


def is_open(path: str) -> bool:
    """Return whether a path needs no key."""
    return path in OPEN or path.startswith(OPEN_FOLDER)


def route_label(path: str) -> str:
    """Return a path's name in logs. The set of names is bounded, because a path may hold anything."""
    if path in ROUTES:
        return path
    return OPEN_FOLDER + "*" if path.startswith(OPEN_FOLDER) else "other"


def may_use(role: Role, path: str) -> bool:
    """Return whether keys with this role open a path that needs a key."""
    match role:
        case Role.ADMIN:
            return True
        case Role.METRICS:
            return path in WATCHED
        case Role.CLIENT:
            return path != METRICS and path not in ADMINISTERED
