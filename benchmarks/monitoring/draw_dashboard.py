"""Draws a dashboard's panels from a Prometheus' answers to their queries, in the inspector's style.

This is not Grafana, which is not available as a package. It shows the data that the dashboard's queries find.
"""

import html
import math
import time
from typing import Any, NamedTuple

from prismoe.benchmarks.monitoring.dashboards import with_variables
from prismoe.benchmarks.monitoring.prometheus import Prometheus
from prismoe.benchmarks.paths import REPOSITORY

STYLE = REPOSITORY / "server" / "inspector" / "static" / "inspector.css"
OWN_STYLE = """
main { display: grid; grid-template-columns: repeat(24, 1fr); gap: 14px; padding-bottom: 20px; }
main > h2 { grid-column: 1 / -1; font-size: 15px; color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: var(--radius); padding: 12px; }
.card h3 { font-size: 14px; }
.card p { color: var(--soft); font-size: 12px; }
svg { display: block; width: 100%; height: auto; margin: 8px 0 4px; }
svg text { fill: var(--soft); font: 11px var(--mono); }
.now { font-size: 15px; margin-top: 6px; }
.now b { font-size: 22px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; font-size: 12px; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 5px; }
table { width: 100%; border-spacing: 3px; font: 12px var(--mono); margin-top: 8px; }
td { text-align: center; padding: 5px; border-radius: 4px; }
@media (max-width: 700px) { .card { grid-column: 1 / -1 !important; } }
"""
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
HEIGHT, LEFT, POINTS = 130, 46, 60
UNIT_WIDTH = 43  # of the dashboard's 24 columns


class Line(NamedTuple):
    """A series over time, with a gap for each missing value."""

    label: str
    values: list[tuple[float, float]]


def page(dashboard: dict[str, Any], prometheus: Prometheus, seconds: float) -> str:
    """The dashboard over the last seconds, as one self-contained HTML page."""
    end = time.time()
    panels = "".join(_panel(panel, prometheus, end - seconds, end) for panel in dashboard["panels"])
    style = STYLE.read_text() + OWN_STYLE
    return (
        f"<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<style>{style}</style><header><h1>{html.escape(dashboard['title'])}</h1></header>"
        f"<main>{panels}</main>"
    )


def _panel(panel: dict[str, Any], prometheus: Prometheus, start: float, end: float) -> str:
    title = html.escape(panel["title"])
    if panel["type"] == "row":
        return f"<h2>{title}</h2>"
    if panel["type"] == "table":
        body = _matrix(prometheus.query(_query(panel["targets"][0])))
    elif panel["type"] == "stat":
        body = _values(panel, prometheus)
    else:
        lines = _lines(panel, prometheus, start, end)
        unit = panel["fieldConfig"]["defaults"].get("unit", "short")
        width = UNIT_WIDTH * panel["gridPos"]["w"]
        if panel["type"] == "heatmap":
            body = _heatmap(lines, width, start, end)
        else:
            body = _chart(lines, unit, width, start, end)
    head = f"<h3>{title}</h3><p>{html.escape(panel['description'])}</p>"
    return f"<section class=card style='grid-column: span {panel['gridPos']['w']}'>{head}{body}</section>"


def _values(panel: dict[str, Any], prometheus: Prometheus) -> str:
    """The newest values, or only their names if the panel shows names."""
    [target], unit = panel["targets"], panel["fieldConfig"]["defaults"].get("unit", "short")
    names_alone = panel["options"]["textMode"] == "name"
    parts = []
    for labels, value in prometheus.query(_query(target)):
        name = html.escape(_legend(target, labels))
        number = "" if names_alone else f"<b>{_number(value, unit)}</b> "
        parts.append(f"<div class=now>{number}{name}</div>")
    return "".join(parts)


def _query(target: dict[str, Any]) -> str:
    return with_variables(target["expr"], "5m" if target.get("instant") else "30s")


def _legend(target: dict[str, Any], labels: dict[str, str]) -> str:
    text: str = target["legendFormat"]
    for name, value in labels.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def _lines(panel: dict[str, Any], prometheus: Prometheus, start: float, end: float) -> list[Line]:
    lines = []
    for target in panel["targets"]:
        span = {"start": str(start), "end": str(end), "step": str((end - start) / POINTS)}
        for series in prometheus.get("query_range", query=_query(target), **span)["result"]:
            values = [(float(at), float(value)) for at, value in series["values"]]
            known = [(at, value) for at, value in values if math.isfinite(value)]
            lines.append(Line(_legend(target, series["metric"]), known))
    return sorted(lines, key=lambda line: (len(line.label), line.label))


def _chart(lines: list[Line], unit: str, width: int, start: float, end: float) -> str:
    top = max((value for line in lines for _, value in line.values), default=0) * 1.1 or 1.0
    if unit == "percentunit":
        top = min(top, 1.0)
    parts, legend = [], []
    for tick in range(3):
        y = HEIGHT - tick * HEIGHT / 2
        text = _number(top * tick / 2, unit)
        parts.append(f"<line x1={LEFT} x2={width} y1={y} y2={y} stroke='var(--line)' />")
        parts.append(f"<text x={LEFT - 6} y={max(y, 10)} text-anchor=end>{text}</text>")
    for line, colour in zip(lines, COLOURS, strict=False):
        points = " ".join(
            f"{LEFT + (at - start) / (end - start) * (width - LEFT):.1f},{HEIGHT - value / top * HEIGHT:.1f}"
            for at, value in line.values
        )
        parts.append(f"<polyline points='{points}' fill=none stroke='{colour}' stroke-width=2 />")
        legend.append(f"<span><i style='background: {colour}'></i>{html.escape(line.label)}</span>")
    return f"{_svg(parts, width)}<div class=legend>{''.join(legend)}</div>"


def _number(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value:.0%}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _heatmap(lines: list[Line], width: int, start: float, end: float) -> str:
    """A row for each line. Cumulative histogram buckets are shown as differences."""
    if any(line.label == "+Inf" for line in lines):
        lines = _separate(lines)
    most = max((value for line in lines for _, value in line.values), default=0) or 1.0
    height, step = HEIGHT / max(1, len(lines)), (width - LEFT) / POINTS
    parts = []
    for row, line in enumerate(lines):
        y = HEIGHT - (row + 1) * height
        parts.append(
            f"<text x={LEFT - 6} y={y + height / 2 + 4} text-anchor=end>{html.escape(line.label)}</text>"
        )
        for at, value in line.values:
            x = LEFT + (at - start) / (end - start) * (width - LEFT - step)
            cell = f"x={x:.1f} y={y:.1f} width={step + 0.2:.1f} height={height - 1:.1f}"
            parts.append(f"<rect {cell} fill='{COLOURS[0]}' opacity={value / most:.3f} />")
    return _svg(parts, width)


def _separate(buckets: list[Line]) -> list[Line]:
    """The buckets without the counts of the smaller ones, and without empty buckets."""
    ordered = sorted(buckets, key=lambda line: float(line.label))
    below: dict[float, float] = {}
    separate = []
    for line in ordered:
        values = [(at, max(0, value - below.get(at, 0))) for at, value in line.values]
        separate.append(Line(line.label, values))
        below = dict(line.values)
    return [line for line in separate if any(value > 0 for _, value in line.values)]


def _svg(parts: list[str], width: int) -> str:
    return f"<svg viewBox='0 -4 {width} {HEIGHT + 8}'>{''.join(parts)}</svg>"


def _matrix(samples: list[tuple[dict[str, str], float]]) -> str:
    share = {(int(of["layer"]), int(of["expert"])): value for of, value in samples}
    layers, experts = (sorted({key[index] for key in share}) for index in (0, 1))
    rows = "".join(
        f"<tr><th>layer {layer}</th>{''.join(_cell(share.get((layer, expert))) for expert in experts)}</tr>"
        for layer in layers
    )
    head = "".join(f"<th>expert {expert}</th>" for expert in experts)
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def _cell(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "<td></td>"
    shade = f"color-mix(in srgb, {COLOURS[1]} {value:.0%}, var(--sunk))"
    return f"<td style='background: {shade}'>{value:.0%}</td>"
