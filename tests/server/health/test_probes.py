"""The answers of the probes, without an engine."""

import asyncio

import httpx
from starlette.applications import Starlette

from prismoe.server.health.probes import probe_routes


def ask(trouble: str | None) -> dict[str, tuple[int, str | None]]:
    """The status and the reason of each probe."""

    async def run() -> dict[str, tuple[int, str | None]]:
        app = Starlette(routes=probe_routes(lambda: trouble))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            answers = {path: await client.get(path) for path in ("/livez", "/readyz", "/health")}
        return {path: (answer.status_code, answer.json().get("why")) for path, answer in answers.items()}

    return asyncio.run(run())


def test_a_healthy_server_is_alive_and_ready() -> None:
    assert set(ask(None).values()) == {(200, None)}


def test_a_server_with_a_fault_is_alive_and_gives_the_reason_why_it_is_not_ready() -> None:
    why = "The engine has taken no step for 61 s."
    assert ask(why) == {"/livez": (200, None), "/readyz": (503, why), "/health": (503, why)}
