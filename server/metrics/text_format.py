"""Writes Prometheus' text formats for metrics whose series are known from the start.

prometheus_client takes a quarter of a second for 64 layers of 128 experts. This module writes names and
labels once, and only adds the values at a scrape.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

Kind = Literal["counter", "gauge", "info", "summary", "histogram"]
SUFFIXES = {
    "counter": ["_total"],
    "gauge": [""],
    "info": ["_info"],
    "summary": ["_count", "_sum"],
    "histogram": ["_count", "_sum"],
}


class Family:
    """One metric, with its series for each of `label_values`, in that order.

    `name` ends with the unit, if there is one, and lacks the suffix of the kind. A summary has two series for
    each of `label_values`: count and sum, and no quantiles. A histogram has these two, after one for each of
    `bounds`, the last of which is infinity.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        help_text: str,
        labels: Sequence[str],
        label_values: Iterable[Sequence[str]],
        unit: str = "",
        bounds: Sequence[float] = (),
    ) -> None:
        self.name, self.kind, self.help_text, self.unit = name, kind, help_text, unit
        buckets = [[("le", _bound(bound))] for bound in bounds]
        suffixes = [("_bucket", le) for le in buckets] + [(suffix, []) for suffix in SUFFIXES[kind]]
        self.series = [
            f"{name}{suffix}{{{_labels([*zip(labels, values, strict=True), *more])}}}"
            for values in label_values
            for suffix, more in suffixes
        ]

    def lines(self, values: Iterable[float], openmetrics: bool) -> list[str]:
        """Return the metric's lines in OpenMetrics or in the older format. A series with NaN is left out."""
        samples = [
            f"{series} {value}"
            for series, value in zip(self.series, values, strict=True)
            if not math.isnan(value)
        ]
        if not samples:
            return []
        return self._openmetrics_head() + samples if openmetrics else self._head() + samples

    def _openmetrics_head(self) -> list[str]:
        unit = [f"# UNIT {self.name} {self.unit}"] if self.unit else []
        return [f"# HELP {self.name} {self.help_text}", f"# TYPE {self.name} {self.kind}", *unit]

    def _head(self) -> list[str]:
        kind = "gauge" if self.kind == "info" else self.kind
        name = self.name + (SUFFIXES[self.kind][0] if self.kind in ("counter", "info") else "")
        return [f"# HELP {name} {self.help_text}", f"# TYPE {name} {kind}"]


def _bound(bound: float) -> str:
    return "+Inf" if math.isinf(bound) else str(float(bound))


def _labels(pairs: Iterable[tuple[str, str]]) -> str:
    return ",".join(f'{name}="{_escape(value)}"' for name, value in pairs)


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
