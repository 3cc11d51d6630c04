"""Prometheus's settings and Grafana's provisioning match each other, compose.yaml and the chart."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from prismoe.benchmarks.monitoring.dashboards import QUERIES, with_variables
from prismoe.benchmarks.monitoring.prometheus import program
from tests.deploy.conftest import DEPLOY, Compose, render

GRAFANA = DEPLOY / "grafana"

A_MINUTE = {
    'prismoe_tokens_total{modality="text"}': 100,
    'prismoe_tokens_total{modality="image"}': 300,
    'prismoe_tokens_total{modality="video"}': 100,
    'prismoe_routed_tokens_total{modality="text"}': 200,
    'prismoe_routed_tokens_total{modality="image"}': 600,
    'prismoe_routed_tokens_total{modality="video"}': 200,
    'prismoe_used_experts_total{modality="text"}': 400,
    'prismoe_used_experts_total{modality="image"}': 1200,
    "prismoe_vision_tail_tokens_total{}": 200,
    'prismoe_layer_vision_tail_tokens_total{layer="1"}': 160,
    "vllm:request_success_total{}": 5,
    "vllm:prefix_cache_hits_total{}": 30,
    "vllm:prefix_cache_queries_total{}": 120,
    "vllm:mm_cache_hits_total{}": 4,
    "vllm:mm_cache_queries_total{}": 40,
}
"""The increases of a made-up server's counters."""
UP = {'up{instance="a"}': 1, 'up{instance="b"}': 0, 'up{instance="c"}': 1}
"""The servers that answer."""
OF_PANELS: dict[str, dict[str, float]] = {
    "experts.json: Tail share 0": {"{}": 0.25},
    "experts.json: Tail share by layer 0": {'{layer="1"}': 0.4},
    "experts.json: Text among the most loaded experts 1": {"{}": 0.25},
    "experts.json: Share of the experts' work 0": {'{modality="image"}': 0.75, '{modality="text"}': 0.25},
    "experts.json: Tokens of a request 0": {"{}": 100},
    "serving.json: Prefix cache 0": {"{}": 0.25},
    "serving.json: Image cache 0": {"{}": 0.1},
    "serving.json: Servers that answer 0": {"{}": 2},
    "serving.json: Servers that answer 1": {"{}": 3},
}
"""The values of panels that show a part and its whole."""


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_prometheus_scrapes_the_server_and_reads_the_rules(compose: Compose) -> None:
    settings = load(DEPLOY / "prometheus/prometheus.yaml")
    assert set(settings) == {"global", "rule_files", "scrape_configs", "alerting"}
    assert settings["rule_files"] == ["rules/*.yaml"]
    [server] = [job for job in settings["scrape_configs"] if job["job_name"] == "prismoe"]
    assert server["static_configs"] == [{"targets": ["server:8000"]}]
    services = yaml.safe_load(compose().stdout)["services"]
    [folder] = [v["target"] for v in services["prometheus"]["volumes"] if v["source"] == "prometheus-key"]
    assert server["authorization"] == {"credentials_file": f"{folder}/metrics_key"}
    assert "--config.file=/etc/prometheus/prometheus.yaml" in services["prometheus"]["command"]


def test_prometheus_reads_every_file_of_rules() -> None:
    [pattern] = load(DEPLOY / "prometheus/prometheus.yaml")["rule_files"]
    read = set((DEPLOY / "prometheus").glob(pattern))
    files = [*(DEPLOY / "prometheus").rglob("*.yaml"), *(DEPLOY / "prometheus").rglob("*.yml")]
    assert read == {file for file in files if "groups" in load(file)}


@pytest.mark.prometheus
def test_promtool_accepts_the_settings(tmp_path: Path) -> None:
    promtool = shutil.which("promtool", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert promtool, "promtool is needed: it comes with Prometheus (Debian's package prometheus)."
    config = shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus") / "prometheus.yaml"
    key = tmp_path / "metrics_key"
    key.write_text("a key")
    config.write_text(config.read_text().replace("/run/prismoe/metrics_key", str(key)))
    done = subprocess.run([promtool, "check", "config", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_queries_prometheus(compose: Compose) -> None:
    [source] = load(GRAFANA / "provisioning/datasources/prometheus.yaml")["datasources"]
    services = yaml.safe_load(compose().stdout)["services"]
    assert source["url"] == "http://prometheus:9090"
    assert services["prometheus"]["ports"][0]["target"] == 9090
    assert source["jsonData"]["manageAlerts"] is True
    interval = load(DEPLOY / "prometheus/prometheus.yaml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval


def test_grafana_finds_the_dashboards(compose: Compose) -> None:
    [provider] = load(GRAFANA / "provisioning/dashboards/prismoe.yaml")["providers"]
    volumes = yaml.safe_load(compose().stdout)["services"]["grafana"]["volumes"]
    [folder] = [v["source"] for v in volumes if v["target"] == provider["options"]["path"]]
    assert folder.endswith("/grafana/dashboards")
    dashboards = set((GRAFANA / "dashboards").glob("*.json"))
    assert dashboards == set(GRAFANA.rglob("*.json")), "Not all dashboards are there."


def test_panels_lie_within_the_dashboard() -> None:
    for dashboard in GRAFANA.rglob("*.json"):
        for panel in load(dashboard)["panels"]:
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, (dashboard.name, panel["title"])


def test_no_two_panels_have_the_same_title() -> None:
    """The tests of their queries identify panels by title."""
    for dashboard in GRAFANA.rglob("*.json"):
        titles = [panel["title"] for panel in load(dashboard)["panels"]]
        assert len(titles) == len(set(titles)), dashboard.name


@pytest.mark.prometheus
def test_panels_distinguish_a_part_from_its_whole(tmp_path: Path) -> None:
    of_server = '{job="prismoe", model_name="m", '
    values = {name: f"0+{rise}x10" for name, rise in A_MINUTE.items()} | {
        name: f"{is_up}x10" for name, is_up in UP.items()
    }
    series = [
        {"series": name.replace("{", of_server), "values": reported} for name, reported in values.items()
    ]
    cases = [
        {
            # promtool needs the exact number, and a rate is rounded.
            "expr": f"round({with_variables(QUERIES[panel])}, 0.001)",
            "eval_time": "10m",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
        }
        for panel, samples in OF_PANELS.items()
    ]
    file = tmp_path / "panels.yaml"
    test = {"interval": "1m", "input_series": series, "promql_expr_test": cases}
    file.write_text(yaml.safe_dump({"tests": [test]}))
    run = subprocess.run([program("promtool"), "test", "rules", file], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_first_screen_fits_a_screen() -> None:
    """A screen of 1080 lines shows about 24 rows of Grafana's grid."""
    first = [
        panel for panel in load(GRAFANA / "dashboards/experts.json")["panels"] if panel["gridPos"]["y"] < 18
    ]
    questions = [panel["title"] for panel in first if panel["type"] == "row"]
    assert questions == ["Are my experts healthy?", "Which modality starves?", "What does it cost?"]
    assert [panel["type"] for panel in first if panel["type"] != "row"] == ["stat"] * 12


def test_dashboards_use_the_provisioned_source() -> None:
    [source] = load(GRAFANA / "provisioning/datasources/prometheus.yaml")["datasources"]
    for dashboard in GRAFANA.rglob("*.json"):
        asked = set(re.findall(r'"type": "prometheus", "uid": "([^"]+)"', dashboard_text(dashboard)))
        # The source is a variable of the dashboard.
        assert {uid for uid in asked if not uid.startswith("$")} <= {source["uid"]}, dashboard


def dashboard_text(dashboard: Path) -> str:
    return json.dumps(json.loads(dashboard.read_text()), sort_keys=True)


def test_kubernetes_and_compose_use_the_same_job_name() -> None:
    manifests = render()
    monitor = manifests["PodMonitor", "demo"]["spec"]
    labels = manifests["Deployment", "demo"]["spec"]["template"]["metadata"]["labels"]
    assert labels[monitor["jobLabel"]] == "prismoe"
