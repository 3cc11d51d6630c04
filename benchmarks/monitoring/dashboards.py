"""The queries of Grafana's dashboards, in a form that Prometheus accepts without Grafana."""

import json
import math
import re

from prismoe.benchmarks.monitoring.prometheus import DEPLOY

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


def with_variables(query: str, interval: str = "5m") -> str:
    """A panel's query with all values for each variable."""
    query = re.sub(r"\[\$__(rate_interval|range)\]", f"[{interval}]", query)
    query = re.sub(r'=~"\$(job|model|layer|modality)"', '=~".+"', query)
    assert "$" not in query
    return query


def shows_something(samples: list[tuple[dict[str, str], float]]) -> bool:
    """Whether a panel would draw a value."""
    return any(not math.isnan(value) for _, value in samples)
