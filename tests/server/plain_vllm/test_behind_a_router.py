"""Two of vLLM's own servers with the plugin, behind vLLM's router, scraped by Prometheus."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest

from prismoe.benchmarks.monitoring.dashboards import QUERIES, shows_something, with_variables
from prismoe.benchmarks.monitoring.prometheus import Prometheus
from prismoe.loadtests.local_server import free_port
from tests.doc_commands import documented
from tests.model_plugins.in_tree.checkpoints import make_checkpoint
from tests.model_plugins.in_tree.reference import Answer, answers
from tests.server.in_tree.asking import MAX_TOKENS, OPTIONS, ask, body
from tests.server.plain_vllm.conftest import CHATS
from tests.server.plain_vllm.stock import StockServer, settings

pytestmark = [pytest.mark.server, pytest.mark.prometheus]

TIMES = 10
OWN_SERVER = "prismoe_refused_requests_total"
"""Metrics that only prismoe's own server has."""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3-vl-moe", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def expected(qwen: Path) -> list[Answer]:
    return answers(qwen, CHATS, MAX_TOKENS)


@pytest.fixture(scope="module")
def prometheus(
    vllm: Path, qwen: Path, expected: list[Answer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped both servers while clients used the router."""
    folder = tmp_path_factory.mktemp("behind")
    options = (*OPTIONS, *settings(expert_metrics="full"))
    with ExitStack() as stack:
        servers = []
        for name in ("first", "second"):
            server = StockServer(folder / name, vllm, str(qwen), *options)
            stack.callback(server.stop)
            servers.append(server)
        for server in servers:
            server.wait_until_ready()
        urls = [server.url for server in servers]
        running = Prometheus(folder, *urls)
        stack.callback(running.stop)
        running.wait_until(lambda: len(running.query("prismoe_window_tokens")) == 6, 60)
        port = free_port()
        router = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm_router.launch_router"),
                *router_arguments(port, urls),
            ],
            stdout=(folder / "router").open("wb"),
            stderr=subprocess.STDOUT,
        )
        stack.callback(router.wait)
        stack.callback(router.terminate)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
            running.wait_until(lambda: is_ready(http), 60)
            for _ in range(TIMES):
                for chat, answer in zip(CHATS, expected, strict=True):
                    assert ask(http, body(chat)) == (answer.prompt_ids, answer.token_ids)
        tokens = TIMES * sum(len(answer.modality_T) for answer in expected)
        running.wait_until(lambda: sum_of(running, "prismoe_tokens_total") == tokens, 30)
        running.wait_until(
            lambda: shows_something(running.query("prismoe:experts_per_token:ratio_rate5m")), 30
        )
        yield running


def router_arguments(port: int, urls: list[str]) -> list[str]:
    """Those of the page, for servers and a port of this machine."""
    [command] = documented("vllm-router")
    command = command.replace("0.0.0.0", "127.0.0.1").replace("8080", str(port))
    return command.replace("http://host-a:8000 http://host-b:8000", " ".join(urls)).split()[1:]


def is_ready(http: httpx.Client) -> bool:
    try:
        return http.get("/v1/models").is_success
    except httpx.TransportError:
        return False


def sum_of(prometheus: Prometheus, series: str) -> float:
    return sum(value for _, value in prometheus.query(series))


def test_the_counts_of_both_add_up(prometheus: Prometheus, expected: list[Answer]) -> None:
    counts = TIMES * np.sum([answer.counts for answer in expected], axis=0)
    by_server = prometheus.query("sum by (instance) (prismoe_expert_tokens_total)")
    assert len(by_server) == 2 and all(value > 0 for _, value in by_server)
    assert sum(value for _, value in by_server) == counts.sum()
    by_modality = prometheus.query("sum by (modality) (prismoe_expert_tokens_total)")
    assert {labels["modality"]: value for labels, value in by_modality} == dict(
        zip(["text", "image", "video"], counts.sum(axis=(0, 2)).tolist(), strict=True)
    )


@pytest.mark.parametrize("name", [name for name, query in QUERIES.items() if OWN_SERVER not in query])
def test_every_panel_shows_something(prometheus: Prometheus, name: str) -> None:
    assert shows_something(prometheus.query(with_variables(QUERIES[name])))


def test_the_rules_are_evaluated(prometheus: Prometheus) -> None:
    assert {rule["health"] for rule in prometheus.rules()} == {"ok"}
    assert "PrismoeEngineDead" not in {rule["name"] for rule in prometheus.rules() if rule.get("alerts")}
