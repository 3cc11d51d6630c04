"""Checks of what Prometheus has: the rules' series, the engine's totals, and the alert of a dead engine."""

import re
import time
from typing import Any

import httpx
import psutil

from prismoe.benchmarks.monitoring.prometheus import Prometheus

SELECTOR = re.compile(r"\b((?:prismoe|vllm:|http_|up\b)[\w:]*)(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*(?:=~|!=|=)")
ALERT_BOUND_S = 5 + 30 + 3  # the server sees its engine's death; the rule waits; scrapes, evaluations, exits
Totals = dict[tuple[str, ...], float]


def check_rule(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    """Check that a rule is healthy, that all of its series exist, and that it fires no alert."""
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


def counted(url: str) -> Totals:
    """The engine's own counts at `url`, by the Prometheus series that export them."""
    time.sleep(0.5)  # The server answers with a reading that is up to half a second old.
    load = httpx.get(f"{url}/v1/routing/load", timeout=60).raise_for_status().json()
    totals: Totals = {}
    for index, layer in enumerate(map(str, load["layers"])):
        for row, modality in enumerate(load["modalities"]):
            for expert, tokens in enumerate(load["expert_tokens"][index][row]):
                totals["prismoe_expert_tokens_total", layer, modality, str(expert)] = tokens
            for series, name in (
                ("prismoe_layer_near_ties_sum", "near_ties"),
                ("prismoe_layer_near_ties_count", "scored_tokens"),
                ("prismoe_layer_routing_entropy_nats_count", "scored_tokens"),
                ("prismoe_layer_routing_entropy_nats_sum", "routing_entropy"),
                ("prismoe_layer_routing_probability_variance_sum", "routing_variance"),
            ):
                totals[series, layer, modality] = load[name][index][row]
        totals["prismoe_layer_vision_tail_tokens_total", layer] = load["tail_tokens"][index]
    for row, modality in enumerate(load["modalities"]):
        routed = sum(tokens[row] for tokens in load["tokens"])
        totals["prismoe_tokens_total", modality] = load["tokens"][0][row]
        totals["prismoe_routed_tokens_total", modality] = routed
        totals["prismoe_token_experts_count", modality] = routed
        uses = sum(sum(of_layer[row]) for of_layer in load["expert_tokens"])
        totals["prismoe_token_experts_sum", modality] = totals["prismoe_used_experts_total", modality] = uses
    return totals


def scraped(prometheus: Prometheus, names: set[str]) -> Totals:
    """The values of the same series in Prometheus."""
    return {
        (name, *(labels[label] for label in ("layer", "modality", "expert") if label in labels)): value
        for name in names
        for labels, value in prometheus.query(name)
    }


def wait_for_totals(prometheus: Prometheus, url: str) -> Totals:
    """Wait until Prometheus has the engine's totals, and return them."""
    expected = counted(url)
    names = {key[0] for key in expected}
    prometheus.wait_until(lambda: scraped(prometheus, names) == expected, 20)
    return expected


def seconds_to_alert(prometheus: Prometheus, process_id: int) -> float:
    """Kill the server's engine, and return the seconds until the alert of a dead engine fires."""

    def firing() -> bool:
        alerts = [rule for rule in prometheus.rules() if rule["name"] == "PrismoeEngineDead"]
        return [alert["state"] for alert in alerts] == ["firing"]

    assert not firing()
    children = psutil.Process(process_id).children()
    next(child for child in children if "EngineCore" in child.name()).kill()
    return prometheus.wait_until(firing, ALERT_BOUND_S)
