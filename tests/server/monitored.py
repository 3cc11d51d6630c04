"""Minutes of mixed load on a real server that a real Prometheus scrapes: `make monitored`.

Every panel and rule must find something, Prometheus' totals must be the engine's, and after the engine was
killed its alert must fire in time. With --pictures the dashboard Experts is drawn.
"""

import argparse
import asyncio
import json
import math
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from prismoe.loadtests.traffic import client, send_all
from prismoe.loadtests.two_servers import mixed_requests
from tests.deploy.prometheus import DEPLOY, Prometheus
from tests.server.draw_dashboard import page, with_variables
from tests.server.running import Server
from tests.server.take_pictures import take_page

DASHBOARDS = {
    path.name: json.loads(path.read_text())
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
}
QUERIES = {
    f"{name}: {panel['title']} {number}": target["expr"]
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    for number, target in enumerate(panel.get("targets", []))
}
SELECTOR = re.compile(r"\b((?:prismoe|vllm:|http_|up\b)[\w:]*)(?:\{([^}]*)\})?")
LABEL = re.compile(r"(\w+)\s*(?:=~|!=|=)")
ALERT_BOUND_S = 5 + 30 + 3  # the server sees its engine's death; the rule waits; scrapes, evaluations, exits
Totals = dict[tuple[str, ...], float]


def shows_something(samples: list[tuple[dict[str, str], float]]) -> bool:
    """Whether a panel would draw a value."""
    return any(not math.isnan(value) for _, value in samples)


def check_rule(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    """A rule is evaluated on what there is, and no alert fires."""
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


def counted(server: Server) -> Totals:
    """The engine's own counts, by the series that tell of them."""
    time.sleep(0.5)  # A client gets a reading of the last half second.
    load = httpx.get(f"{server.url}/v1/routing/load", timeout=60).raise_for_status().json()
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
    """The same series in Prometheus."""
    return {
        (name, *(labels[label] for label in ("layer", "modality", "expert") if label in labels)): value
        for name in names
        for labels, value in prometheus.query(name)
    }


def wait_for_totals(prometheus: Prometheus, server: Server) -> Totals:
    """Returns the totals once Prometheus has the engine's."""
    expected = counted(server)
    names = {key[0] for key in expected}
    prometheus.wait_until(lambda: scraped(prometheus, names) == expected, 20)
    return expected


def seconds_to_alert(prometheus: Prometheus, server: Server) -> float:
    """Kill the server's engine; how long it takes until the alert of a dead engine fires."""

    def firing() -> bool:
        alerts = [rule for rule in prometheus.rules() if rule["name"] == "PrismoeEngineDead"]
        return [alert["state"] for alert in alerts] == ["firing"]

    assert not firing()
    server.watch()
    children = psutil.Process(server.process.pid).children()
    next(child for child in children if "EngineCore" in child.name()).kill()
    return prometheus.wait_until(firing, ALERT_BOUND_S)


async def send_for(url: str, seconds: float, at_once: int) -> dict[str, float]:
    """A mixed load for so long; how many requests it held, and the tokens of their answers."""
    requests, tokens, start = 0, 0, time.monotonic()
    async with client(url) as session:
        while time.monotonic() - start < seconds:
            timings = await send_all(session, mixed_requests(4 * at_once, seed=requests), at_once)
            requests += len(timings)
            tokens += sum(timing.tokens for timing in timings)
    return {"seconds": time.monotonic() - start, "requests": requests, "answer_tokens": tokens}


def main() -> None:
    """Print what was seen as JSON; fails where something was not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--at-once", type=int, default=8, help="requests under way (default: 8)")
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of the dashboard Experts")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "server.log", "--expert-metrics", "full")
        prometheus = Prometheus(Path(folder), server.url)
        try:
            server.wait_until_ready()
            report: dict[str, Any] = asyncio.run(
                send_for(server.url, 60 * arguments.minutes, arguments.at_once)
            )
            totals = wait_for_totals(prometheus, server)
            (_, generated), *_ = prometheus.query("sum(vllm:generation_tokens_total)")
            assert generated == report["answer_tokens"], (generated, report)
            empty = [
                name
                for name, query in QUERIES.items()
                if not shows_something(prometheus.query(with_variables(query)))
            ]
            assert not empty, empty
            if arguments.pictures:
                drawn = page(DASHBOARDS["experts.json"], prometheus, report["seconds"])
                take_page(drawn, arguments.pictures, "experts")
            rules = prometheus.rules()
            for rule in rules:
                check_rule(prometheus, rule)
            report |= {
                "scrapes": prometheus.query("count_over_time(up[1h])")[0][1],
                "queries_with_data": len(QUERIES),
                "rules_evaluated": len(rules),
                "equal_totals": len(totals),
                **{
                    f"{key[1]}_tokens": count
                    for key, count in totals.items()
                    if key[0] == "prismoe_tokens_total"
                },
                "alert_after_s": round(seconds_to_alert(prometheus, server), 1),
                "alert_bound_s": ALERT_BOUND_S,
            }
        finally:
            prometheus.stop()
            if server.process.poll() is None:
                server.stop()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
