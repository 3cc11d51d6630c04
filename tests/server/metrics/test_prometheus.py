"""A real Prometheus scrapes a real server: every panel's and rule's query has to find data."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from prismoe.benchmarks.monitoring.checks import check_rule, seconds_to_alert, wait_for_totals
from prismoe.benchmarks.monitoring.dashboards import DASHBOARDS, QUERIES, shows_something, with_variables
from prismoe.benchmarks.monitoring.prometheus import Prometheus
from tests.server.app.test_counts import mixed_requests
from tests.server.running import Server

pytestmark = [pytest.mark.server, pytest.mark.prometheus]

VARIABLES = [
    pytest.param(variable["query"], id=f"{name}: {variable['name']}")
    for name, dashboard in DASHBOARDS.items()
    for variable in dashboard["templating"]["list"]
    if variable["type"] == "query"
]


@pytest.fixture(scope="module")
def prometheus(
    server: Server, picture: bytes, other_picture: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the server under a mixed load."""
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), server.url)
    try:
        running.wait_until(lambda: bool(running.query("prismoe_window_tokens")), 60)
        with httpx.Client(base_url=server.url, timeout=60) as http:
            for request in mixed_requests(picture, other_picture):
                request.computed(http)
        running.wait_until(
            lambda: shows_something(running.query("prismoe:experts_per_token:ratio_rate5m")), 30
        )
        running.wait_until(lambda: bool(running.query("prismoe:http_errors:ratio_rate5m")), 30)
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
def test_every_panel_shows_something(prometheus: Prometheus, query: str) -> None:
    assert shows_something(prometheus.query(with_variables(query)))


@pytest.mark.parametrize("query", VARIABLES)
def test_every_variable_has_values(prometheus: Prometheus, query: str) -> None:
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert match is not None
    series, label = match.groups()
    values = {labels[label] for labels, _ in prometheus.query(with_variables(series))}
    assert values and "" not in values


def test_every_rule_is_evaluated_and_no_alert_fires(prometheus: Prometheus) -> None:
    rules = prometheus.rules()
    assert {rule["type"] for rule in rules} == {"recording", "alerting"}
    for rule in rules:
        check_rule(prometheus, rule)


def test_totals_in_prometheus_are_the_engines(prometheus: Prometheus, server: Server) -> None:
    totals = wait_for_totals(prometheus, server.url)
    assert totals["prismoe_tokens_total", "image"] > 0


def test_statuses_have_the_names_that_the_rules_expect(prometheus: Prometheus) -> None:
    statuses = {labels["status"] for labels, _ in prometheus.query("http_requests_total")}
    assert "2xx" in statuses and all(re.fullmatch("[1-5]xx", status) for status in statuses)


def test_a_killed_engine_ends_the_server_and_fires_its_alert(tmp_path: Path) -> None:
    server = Server(tmp_path / "log")
    server.wait_until_ready()  # A start of 30 seconds would fire the alert.
    prometheus = Prometheus(tmp_path, server.url)
    try:
        prometheus.wait_until(lambda: [value for _, value in prometheus.query("up")] == [1], 20)
        server.watch()
        seconds_to_alert(prometheus, server.process.pid)
        assert server.process.wait(10) == 1
        assert "The engine died." in server.output
        assert server.survivors() == []
    finally:
        prometheus.stop()
        if server.process.poll() is None:
            server.stop()
        psutil.wait_procs(server.family, timeout=10)
