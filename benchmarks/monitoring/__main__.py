"""Puts minutes of mixed load on a real server that a real Prometheus scrapes: `make monitored`.

Every panel and rule must have data, Prometheus' totals must equal the engine's, and after the engine is
killed its alert must fire in time. With --pictures the program also draws the dashboard Experts.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

from prismoe.benchmarks.monitoring.checks import ALERT_BOUND_S, check_rule, seconds_to_alert, wait_for_totals
from prismoe.benchmarks.monitoring.dashboards import DASHBOARDS, QUERIES, shows_something, with_variables
from prismoe.benchmarks.monitoring.draw_dashboard import page
from prismoe.benchmarks.monitoring.pictures import LOG, take_page
from prismoe.benchmarks.monitoring.prometheus import Prometheus
from prismoe.loadtests.local_server import local_server
from prismoe.loadtests.traffic import client, send_all
from prismoe.loadtests.two_servers import mixed_requests


async def send_for(url: str, seconds: float, at_once: int) -> dict[str, float]:
    """Send a mixed load; return its seconds, its number of requests and the tokens of their answers."""
    requests, tokens, start = 0, 0, time.monotonic()
    async with client(url) as session:
        while time.monotonic() - start < seconds:
            timings = await send_all(session, mixed_requests(4 * at_once, seed=requests), at_once)
            requests += len(timings)
            tokens += sum(timing.tokens for timing in timings)
    return {"seconds": time.monotonic() - start, "requests": requests, "answer_tokens": tokens}


def seen(prometheus: Prometheus, url: str, answer_tokens: float) -> dict[str, float]:
    """Prometheus' figures. Raises AssertionError if a panel or rule has no data, or the totals differ."""
    totals = wait_for_totals(prometheus, url)
    (_, generated), *_ = prometheus.query("sum(vllm:generation_tokens_total)")
    assert generated == answer_tokens, (generated, answer_tokens)
    empty = [
        name
        for name, query in QUERIES.items()
        if not shows_something(prometheus.query(with_variables(query)))
    ]
    assert not empty, empty
    rules = prometheus.rules()
    for rule in rules:
        check_rule(prometheus, rule)
    return {
        "scrapes": prometheus.query("count_over_time(up[1h])")[0][1],
        "queries_with_data": len(QUERIES),
        "rules_evaluated": len(rules),
        "equal_totals": len(totals),
        **{f"{key[1]}_tokens": count for key, count in totals.items() if key[0] == "prismoe_tokens_total"},
    }


def main() -> None:
    """Print the figures as JSON. Raises AssertionError if something is missing."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="example:\n  python -m prismoe.benchmarks.monitoring --minutes 2",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=3, help="how long to send requests (default: 3)")
    parser.add_argument("--at-once", type=int, default=8, help="requests at a time (default: 8)")
    parser.add_argument("--pictures", type=Path, help="folder to write pictures of the dashboard Experts to")
    arguments = parser.parse_args()
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with local_server(LOG) as (url, process_id), tempfile.TemporaryDirectory() as folder:
        prometheus = Prometheus(Path(folder), url)
        try:
            report = asyncio.run(send_for(url, 60 * arguments.minutes, arguments.at_once))
            report |= seen(prometheus, url, report["answer_tokens"])
            if arguments.pictures:
                drawn = page(DASHBOARDS["experts.json"], prometheus, report["seconds"])
                take_page(drawn, arguments.pictures, "experts")
            report |= {
                "alert_after_s": round(seconds_to_alert(prometheus, process_id), 1),
                "alert_bound_s": ALERT_BOUND_S,
            }
        finally:
            prometheus.stop()
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
