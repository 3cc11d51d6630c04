"""The load tests measure the right things on the shared server."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from prismoe.loadtests.__main__ import main
from prismoe.loadtests.repeated_image import measure
from prismoe.loadtests.results import Run
from prismoe.loadtests.target import Counters, counters_now, difference, finished, total
from prismoe.loadtests.traffic import authorization, client, report
from prismoe.loadtests.two_servers import compare, mixed_requests
from prismoe.model_plugins.files.bundled import bundled_checkpoint
from tests.server.running import Server


def growth(url: str, measurement: Coroutine[Any, Any, dict[str, Any]]) -> tuple[dict[str, Any], Counters]:
    """Run a measurement, and return its result and the growth of the server's counters."""

    async def run() -> tuple[dict[str, Any], Counters]:
        async with client(url) as session:
            before = await counters_now(session)
            measured = await measurement
            return measured, difference(before, await counters_now(session))

    return asyncio.run(run())


def test_a_repeated_picture_is_computed_once(server: Server) -> None:
    measured, grown = growth(server.url, measure(server.url, pictures=2, rounds=2))
    assert finished(grown) == 1 + 2 * 2
    assert total(grown, "vllm:prompt_tokens_cached_total") >= 2 * 2 * 64
    assert measured["rounds"] == 2 and min(measured["cold_s"], measured["repeated_s"]) > 0


def test_a_server_against_itself_gets_the_load_twice(server: Server) -> None:
    measured, grown = growth(server.url, compare(server.url, server.url, rounds=2, requests=4, at_once=2))
    assert measured["rounds"] == 2 and finished(grown) == 2 * 3 * 4
    low, high = measured["middle_half"]
    assert 0 < low <= measured["a_over_b"] <= high


def test_metrics_have_their_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        key = {"/metrics": "metrics"}.get(request.url.path, "client")
        return httpx.Response(200 if request.headers["Authorization"] == f"Bearer {key}" else 403, text="")

    async def ask() -> int:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(
            base_url="http://x", headers=authorization("OPENAI_API_KEY"), transport=transport
        ) as session:
            await counters_now(session)
            return (await session.get("/v1/models")).status_code

    monkeypatch.setenv("OPENAI_API_KEY", "client")
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        asyncio.run(ask())
    monkeypatch.setenv("PRISMOE_METRICS_KEY", "metrics")
    assert asyncio.run(ask()) == 200


def test_the_same_seed_makes_the_same_load() -> None:
    assert mixed_requests(6, seed=1) == mixed_requests(6, seed=1) != mixed_requests(6, seed=2)


def test_a_refusal_is_a_message(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"The server did not answer: .*At most 8 image"):
        report(measure(server.url, pictures=9, rounds=1))
    report(measure(server.url, pictures=0, rounds=1))
    assert json.loads(capsys.readouterr().out)["rounds"] == 1


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server) -> Callable[..., int]:
    """Run `python -m prismoe.loadtests` on the shared server, and return its exit status."""

    def run(*options: str) -> int:
        tokenizer = ("--tokenizer", str(bundled_checkpoint()))
        command = ["loadtests", server.url, "--output", str(tmp_path), *tokenizer, *options]
        monkeypatch.setattr("sys.argv", command)
        return main()

    return run


def test_a_short_load_test_with_a_soak(load: Callable[..., int], server: Server, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"name": "own", "requests": 4, "images": 2, "answer_tokens": 6}))
    pid = str(server.process.pid)
    names = ["--scenario", "repeated-image", "--scenario", str(own), "--scale", "0.2"]
    assert load(*names, "--soak", "0.1", "--rate", "5", "--bad", "0.4", "--pid", pid) == 0
    run = Run.model_validate_json((tmp_path / "report.json").read_text())
    repeated, two_pictures, soaked = run.phases
    assert (repeated.client.requests, two_pictures.client.requests, soaked.client.requests) == (10, 4, 18)
    assert two_pictures.client.generated_tokens == 24 == two_pictures.server.generated_tokens
    assert two_pictures.expert_load is not None
    assert two_pictures.expert_load.tokens["image"] == 4 * 2 * run.target.image_tokens
    assert {len(experts) for experts in two_pictures.expert_load.by_layer["0"].values()} == {4}
    assert run.soak is not None and run.soak.unexpected == 0
    assert sum(statuses.total() for statuses in run.soak.bad_requests.values()) > 0
    assert any(name.startswith(f"{pid} ") for name in run.soak.memory[0].bytes_by_process)
    assert load("--scenario", str(own), "--against", str(tmp_path / "report.json")) == 0
    assert "## Against the other run" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "There is no scenario or file"),
        ('{"name": "a", "requests": 1, "imags": 2}', "imags: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_scenario_gives_a_message(
    load: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / "own.json").write_text(text)
    assert load("--scenario", str(tmp_path / "own.json")) == 1
    assert f"loadtests: {words}" in capsys.readouterr().err


def test_a_wrong_process_gives_a_message(
    load: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load("--pid", "4194305") == 1
    assert "loadtests: There is no process 4194305" in capsys.readouterr().err
