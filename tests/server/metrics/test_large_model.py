"""A real Prometheus scrapes a made-up load of 48 layers × 128 experts × 3 modalities, without an engine."""

import asyncio
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, Gauge
from starlette.testclient import TestClient

from prismoe.benchmarks.monitoring.dashboards import DASHBOARDS, QUERIES, shows_something, with_variables
from prismoe.benchmarks.monitoring.prometheus import Prometheus
from prismoe.server.metrics.load_reader import ExpertLoadReader
from prismoe.server.metrics.page import ExpertMetrics, MetricsPage
from prismoe.server.requests.routing_choice import RequestCounter
from tests.server.fake_engine import large_load, routing

pytestmark = pytest.mark.prometheus

LAYERS, EXPERTS, MODALITIES = 48, 128, ("text", "image", "video")
EXPERTS_QUERIES = {name: query for name, query in QUERIES.items() if name.startswith("experts.json")}


class Growing:
    """An engine whose counts grow by the same amount at each reading."""

    errored = False

    def __init__(self) -> None:
        self._asked = 0

    async def ask(self, method: str, *args: Any) -> list[Any]:
        self._asked += 1
        return [large_load(self._asked)]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the load more than once."""
    reader, registry = ExpertLoadReader(Growing()), CollectorRegistry()
    asyncio.run(reader.read())
    in_force = routing(*range(LAYERS), experts=EXPERTS, modalities=MODALITIES)
    metrics = ExpertMetrics(reader, in_force, "large", "full")
    requests = RequestCounter(registry, "large")
    Gauge("vllm:num_requests_running", "Running.", ["model_name"], registry=registry).labels("large")
    finished = Counter("vllm:request_success", "Finished.", ["model_name"], registry=registry).labels("large")
    app = FastAPI()
    MetricsPage(registry, metrics).add_to(app)
    page = TestClient(app)

    class Scraped(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asyncio.run(reader.read())
            requests.add(chose_routing=False)
            finished.inc()
            answer = page.get(self.path, headers={"Accept": self.headers["Accept"]})
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["Content-Type"])
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    served = HTTPServer(("127.0.0.1", 0), Scraped)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{served.server_port}"
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), url, interval_s=5)  # a busy machine is slow
    try:
        running.wait_until(
            lambda: shows_something(running.query("prismoe:experts_per_token:ratio_rate5m")), 60
        )
        yield running
    finally:
        running.stop()
        served.shutdown()
        served.server_close()


@pytest.mark.parametrize("query", EXPERTS_QUERIES.values(), ids=EXPERTS_QUERIES.keys())
def test_every_panel_shows_something(prometheus: Prometheus, query: str) -> None:
    assert shows_something(prometheus.query(with_variables(query)))


def test_panels_by_modality_have_each_modality(prometheus: Prometheus) -> None:
    by_modality = [query for query in EXPERTS_QUERIES.values() if "by (modality)" in query]
    assert len(by_modality) > 10
    for query in by_modality:
        reported = {labels["modality"] for labels, _ in prometheus.query(with_variables(query))}
        assert reported == set(MODALITIES), query


@pytest.mark.parametrize("title", ["per token now", "per token, all", "per token", "per token by layer"])
def test_experts_per_token_are_those_of_a_layer(prometheus: Prometheus, title: str) -> None:
    samples = prometheus.query(with_variables(EXPERTS_QUERIES[f"experts.json: Experts {title} 0"]))
    assert samples and [value for _, value in samples] == pytest.approx([8] * len(samples))


@pytest.mark.parametrize("title", ["Where text goes", "Where vision goes", "Text share of each expert"])
def test_matrices_have_a_cell_for_each_layer_and_expert(prometheus: Prometheus, title: str) -> None:
    samples = prometheus.query(with_variables(EXPERTS_QUERIES[f"experts.json: {title} 0"]))
    assert len({(labels["layer"], labels["expert"]) for labels, _ in samples}) == LAYERS * EXPERTS
    if title.startswith("Where"):
        assert sum(value for _, value in samples) == pytest.approx(LAYERS)


def test_vision_is_image_and_video(prometheus: Prometheus) -> None:
    samples = prometheus.query(with_variables(EXPERTS_QUERIES["experts.json: Where vision goes 0"]))
    [of_the_first] = [value for of, value in samples if (of["layer"], of["expert"]) == ("0", "0")]
    image_and_video = (8000 + 3200) // 16
    assert of_the_first == pytest.approx((image_and_video - 2 * 64) / (image_and_video * EXPERTS))


def test_variables_have_the_models_modalities(prometheus: Prometheus) -> None:
    found = {}
    for variable in DASHBOARDS["experts.json"]["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert match is not None
            series, label = match.groups()
            samples = prometheus.query(with_variables(series))
            found[variable["name"]] = {labels[label] for labels, _ in samples}
    layers = {str(layer) for layer in range(LAYERS)}
    assert found == {"job": {"prismoe"}, "model": {"large"}, "layer": layers, "modality": set(MODALITIES)}


def test_the_rules_of_experts_are_evaluated(prometheus: Prometheus) -> None:
    recorded = {
        rule["name"]
        for rule in prometheus.rules()
        if rule["type"] == "recording" and not re.search("http_|vllm:", rule["query"])
    }
    assert len(recorded) == 5
    for name in recorded:
        assert shows_something(prometheus.query(name)), name
    assert all(rule["health"] == "ok" for rule in prometheus.rules())
