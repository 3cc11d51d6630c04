"""`vllm serve` with prismoe's wheel: answers are unchanged, and /metrics has the expert load."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import psutil
import pytest

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from tests.doc_commands import documented, shell
from tests.model_plugins.in_tree.reference import Answer
from tests.server.conftest import image_part, text_part, user
from tests.server.in_tree.asking import (
    AT_ONCE,
    MODEL,
    OPTIONS,
    Samples,
    ask,
    body,
    client,
    load,
    scrape_until_counted,
    since,
)
from tests.server.plain_vllm.conftest import CHATS
from tests.server.plain_vllm.stock import StockServer, imported, settings

pytestmark = pytest.mark.server

LAYERS = [1, 2]
UNUSED = ("worker", "moe_layer", "routing", "recording", "kernels", "server")
"""Packages of prismoe that are only imported if prismoe is used."""


@contextmanager
def serving(log: Path, vllm: Path, *arguments: str, plugins: str | None = "prismoe") -> Iterator[StockServer]:
    server = StockServer(log, vllm, *arguments, *AT_ONCE, plugins=plugins)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()
    assert server.survivors() == []


def ask_all(server: StockServer, expected: Sequence[Answer], times: int = 1) -> None:
    """Send every chat, streamed and not, each over its own connection, because API servers share the port."""

    def one(asked: dict[str, Any]) -> tuple[list[int], list[int]]:
        with client(server) as http:
            return ask(http, asked)

    asked = [body(chat, stream=stream) for stream in (False, True) for chat in CHATS] * times
    with ThreadPoolExecutor(4) as pool:
        reported = list(pool.map(one, asked))
    assert reported == [(answer.prompt_ids, answer.token_ids) for answer in expected] * 2 * times


def cells_of(samples: Samples) -> list[float]:
    """The values of `prismoe_expert_tokens_total` by layer, modality and expert."""
    return [value for key, value in samples.items() if key[0] == "prismoe_expert_tokens_total"]


def check_metrics(server: StockServer, expected: Sequence[Answer], times: int) -> None:
    """Check the metrics after the chats were sent `times` times."""
    counts = 2 * times * np.sum([answer.counts for answer in expected], axis=0)
    tokens = 2 * times * sum(len(answer.modality_T) for answer in expected)
    with client(server) as http:
        samples = scrape_until_counted(http, tokens)
        assert cells_of(samples) == counts.flatten().tolist()
        assert "vllm:prompt_tokens_total" in http.get("/metrics").text


def test_counts_are_in_vllms_own_metrics(
    vllm: Path, glm: Path, expected: list[Answer], tmp_path: Path
) -> None:
    with serving(tmp_path / "log", vllm, str(glm), *OPTIONS, *settings(expert_metrics="full")) as server:
        ask_all(server, expected)
        check_metrics(server, expected, times=1)
        with client(server) as http:
            openmetrics = http.get("/metrics", headers={"Accept": "application/openmetrics-text"})
            assert openmetrics.text.endswith("# EOF\n") and "prismoe_expert_tokens_total{" in openmetrics.text
            for path in ("/v1/routing", "/v1/routing/load", "/v1/routing/inspect", "/inspector"):
                assert http.get(path).status_code == 404
        assert "Glm4vMoeForConditionalGeneration takes text, image, video." in server.output


def test_two_api_servers_with_all_routes(
    vllm: Path, glm: Path, expected: list[Answer], tmp_path: Path
) -> None:
    options = ("--api-server-count", "2", *settings(expert_metrics="full", routes=True))
    with serving(tmp_path / "log", vllm, str(glm), *OPTIONS, *options) as server:
        ask_all(server, expected, times=3)
        for _ in range(6):  # from either API server
            check_metrics(server, expected, times=3)
        with client(server) as http:
            reported = http.get("/v1/routing").raise_for_status().json()
            assert [layer["policy"] for layer in reported["layers"]] == [{"policy": "native"}] * len(LAYERS)
            assert np.array_equal(
                load(http)["expert_tokens"], 6 * np.sum([one.counts for one in expected], axis=0)
            )
            assert http.get("/inspector").status_code == 200
            inspected = http.post("/v1/routing/inspect", json=body(CHATS[1])).raise_for_status().json()
        for layer, experts_TK in zip(inspected["routing"]["layers"], expected[1].experts_LTK, strict=True):
            assert np.array_equal(np.sort(layer["experts"]), np.sort(experts_TK))


@pytest.mark.parametrize("plugins", [None, "prismoe"], ids=["unnamed", "named"])
def test_nothing_of_prismoe_runs_unless_it_is_named(
    plugins: str | None, vllm: Path, glm: Path, expected: list[Answer], tmp_path: Path
) -> None:
    """vLLM loads the general plugins of all installed packages."""
    imported(vllm)
    with serving(tmp_path / "log", vllm, str(glm), *OPTIONS, plugins=plugins) as server:
        ask_all(server, expected)
        with client(server) as http:
            assert ("prismoe_" in http.get("/metrics").text) is (plugins is not None)
        if plugins is not None:
            [command] = documented("curl -s localhost:8000/metrics")
            said = shell(command.replace("localhost:8000", server.url), tmp_path)
            assert said and all(line.startswith("prismoe_") for line in said.splitlines())
    names = imported(vllm)
    assert "prismoe.model_plugins.plugin" in names
    rooms = {room for name in names for room in name.split(".") if room in UNUSED}
    assert rooms == (set() if plugins is None else set(UNUSED))


@pytest.mark.parametrize(
    ("plugins", "options"),
    [(None, ()), ("prismoe", ("--data-parallel-size", "2"))],
    ids=["unnamed", "two-engines"],
)
def test_a_moe_llava_checkpoint_is_routed_like_in_prismoes_server(
    plugins: str | None,
    options: tuple[str, ...],
    vllm: Path,
    http: httpx.Client,
    picture: bytes,
    tmp_path: Path,
) -> None:
    """It needs prismoe's worker in any case. With two engines, vLLM starts two API servers."""
    asked = {
        "messages": user(image_part(picture), text_part("What is this?")),
        "max_tokens": 8,
        "temperature": 0,
        "return_token_ids": True,
    }
    before = load(http)
    answer = ask(http, asked | {"model": bundled_checkpoint().name, "cache_salt": str(uuid4())})
    _, counts = since(before, load(http))
    options += ("--dtype", "float32", "--served-model-name", MODEL, *settings(expert_metrics="full"))
    with (
        serving(tmp_path / "log", vllm, str(bundled_checkpoint()), *options, plugins=plugins) as server,
        client(server) as stock,
    ):
        for _ in range(4):
            assert ask(stock, asked | {"model": MODEL, "cache_salt": str(uuid4())}) == answer
        if plugins is None:
            assert "prismoe_" not in stock.get("/metrics").text
        else:
            samples = scrape_until_counted(stock, 4 * (len(answer[0]) + len(answer[1]) - 1))
            assert cells_of(samples) == (4 * counts).flatten().tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (settings(colour=1), "--additional-config: prismoe.colour: Extra inputs are not permitted."),
        (settings(routing={"policy": "ltdr"}), "give it a threshold."),
        (("--worker-cls", "vllm.v1.worker.cpu_worker.CPUWorker"), "prismoe counts in its own worker"),
    ],
    ids=["setting", "policy", "worker"],
)
def test_impossible_settings_end_the_start_with_a_message(
    options: tuple[str, ...], message: str, vllm: Path, glm: Path, tmp_path: Path
) -> None:
    server = StockServer(tmp_path / "log", vllm, str(glm), *OPTIONS, *options)
    assert server.wait() != 0
    assert message in server.output and "Starting to load model" not in server.output


def test_a_dead_engine_ends_the_server_like_in_vllm(vllm: Path, glm: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", vllm, str(glm), *OPTIONS) as server:
        engine = next(
            one for one in psutil.Process(server.process.pid).children() if "EngineCore" in one.name()
        )
        engine.kill()
        assert server.wait(limit_s=60) is not None
