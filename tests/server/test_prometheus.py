"""A real Prometheus scrapes a real server: every panel's and rule's query must find something."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.deploy.prometheus import DEPLOY, Prometheus
from tests.server.running import Server
from tests.server.test_counts import mixed_requests

DASHBOARDS = {
    path.name: json.loads(path.read_text())
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
}
QUERIES = [
    pytest.param(target["expr"], id=f"{name}: {panel['title']} {number}")
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    for number, target in enumerate(panel.get("targets", []))
]
VARIABLES = [
    pytest.param(variable["query"], id=f"{name}: {variable['name']}")
    for name, dashboard in DASHBOARDS.items()
    for variable in dashboard["templating"]["list"]
    if variable["type"] == "query"
]
SELECTOR = re.compile(r"\b((?:prismoe|vllm:|http_|up\b)[\w:]*)(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*(?:=~|!=|=)")
ALERT_BOUND_S = 5 + 30 + 3  # the server sees its engine's death; the rule waits; scrapes, evaluations, exits


@pytest.fixture(scope="module")
def prometheus(
    server: Server, picture: bytes, other_picture: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """Has scraped the server under a mixed load."""
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), server.url)
    try:
        running.wait_until(lambda: bool(running.query("prismoe_window_tokens")), 60)
        with httpx.Client(base_url=server.url, timeout=60) as http:
            for request in mixed_requests(picture, other_picture):
                request.computed(http)
        running.wait_until(
            lambda: shows_something(running.query("prismoe:experts_per_token:ratio_rate5m")), 30
        )
        yield running
    finally:
        running.stop()


def with_variables(query: str) -> str:
    """A panel's query, with every choice of a variable."""
    query = re.sub(r"\[\$__(rate_interval|range)\]", "[5m]", query)
    query = re.sub(r'=~"\$(job|model|layer|modality)"', '=~".+"', query)
    assert "$" not in query
    return query


def shows_something(samples: list[tuple[dict[str, str], float]]) -> bool:
    return any(not math.isnan(value) for _, value in samples)


@pytest.mark.parametrize("query", QUERIES)
def test_every_panel_shows_something(prometheus: Prometheus, query: str) -> None:
    assert shows_something(prometheus.query(with_variables(query)))


@pytest.mark.parametrize("query", VARIABLES)
def test_every_variable_has_values(prometheus: Prometheus, query: str) -> None:
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert match is not None
    series, label = match.groups()
    values = {labels[label] for labels, _ in prometheus.query(with_variables(series))}
    assert values and "" not in values


def test_every_rule_is_evaluated_on_what_there_is_and_no_alert_fires(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert {rule["type"] for rule in rules} == {"recording", "alerting"}
    for rule in rules:
        assert rule["health"] == "ok", rule
        if rule["type"] == "recording":
            assert prometheus.query(rule["name"]), rule["name"]
        else:
            assert rule["state"] == "inactive", rule
        selectors = SELECTOR.findall(rule["query"])
        assert selectors, rule["query"]
        for name, matchers in selectors:
            labels = ",".join(f'{label}!=""' for label in LABEL.findall(matchers))
            assert prometheus.query(f"{name}{{{labels}}}"), (name, labels)


def test_totals_in_prometheus_are_the_engines(prometheus: Prometheus, server: Server) -> None:
    load: dict[str, Any] = httpx.get(f"{server.url}/v1/routing/load", timeout=60).raise_for_status().json()
    counted = {
        (str(layer), modality, str(expert)): count
        for layer, rows in zip(load["layers"], load["expert_tokens"], strict=True)
        for modality, row in zip(("text", "vision"), rows, strict=True)
        for expert, count in enumerate(row)
    }
    assert sum(counted.values()) > 0

    def scraped() -> dict[tuple[str, ...], float]:
        samples = prometheus.query("prismoe_expert_tokens_total")
        return {(of["layer"], of["modality"], of["expert"]): value for of, value in samples}

    prometheus.wait_until(lambda: scraped() == counted, 20)


def test_statuses_are_called_as_the_rules_expect(prometheus: Prometheus) -> None:
    statuses = {labels["status"] for labels, _ in prometheus.query("http_requests_total")}
    assert "2xx" in statuses and all(re.fullmatch("[1-5]xx", status) for status in statuses)


def test_a_killed_engine_ends_the_server_and_fires_its_alert(tmp_path: Path) -> None:
    server = Server(tmp_path / "log")
    prometheus = Prometheus(tmp_path, server.url)

    def firing() -> bool:
        alerts = [rule for rule in prometheus.rules() if rule["name"] == "PrismoeEngineDead"]
        return [alert["state"] for alert in alerts] == ["firing"]

    try:
        server.wait_until_ready()
        prometheus.wait_until(lambda: [value for _, value in prometheus.query("up")] == [1], 20)
        assert not firing()
        server.watch()
        children = psutil.Process(server.process.pid).children()
        next(child for child in children if "EngineCore" in child.name()).kill()
        prometheus.wait_until(firing, ALERT_BOUND_S)
        assert server.process.wait(10) == 1
        assert "The engine died." in server.output
        assert server.survivors() == []
    finally:
        prometheus.stop()
        if server.process.poll() is None:
            server.stop()
        psutil.wait_procs(server.family, timeout=10)
