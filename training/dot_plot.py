"""Dots with intervals as SVG text, for the pages in docs/."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from prismoe.training.line_plot import COLOURS, svg, text

WIDTH, LEFT, RIGHT, TOP, BOTTOM, ROW = 640, 250, 30, 40, 40, 22
TICK = 5  # per cent


class Dot(NamedTuple):
    """A share, and the ends of its interval."""

    low: float
    value: float
    high: float


def dot_plot(title: str, dots: Mapping[str, Dot]) -> str:
    """An SVG with a row for each dot. The axis shows the part of 0 to 1 that the intervals take."""
    first = math.floor(round(min(dot.low for dot in dots.values()) * 100, 3) / TICK)
    last = math.ceil(round(max(dot.high for dot in dots.values()) * 100, 3) / TICK)
    base = TOP + ROW * len(dots)

    def at(share: float) -> float:
        return round(LEFT + (share * 100 / TICK - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    parts = [text(20, 24, title, size=15)]
    for tick in range(first, last + 1):
        x = at(tick * TICK / 100)
        parts.append(f'<path d="M{x} {TOP}V{base}" stroke="#ccc"/>')
        parts.append(text(x - 12, base + 18, f"{tick * TICK}%"))
    for row, (name, dot) in enumerate(dots.items()):
        y = TOP + ROW * row + ROW / 2
        parts.append(text(20, y + 4, name))
        parts.append(f'<path d="M{at(dot.low)} {y}H{at(dot.high)}" stroke="{COLOURS[0]}" stroke-width="2"/>')
        parts.append(f'<circle cx="{at(dot.value)}" cy="{y}" r="4" fill="{COLOURS[0]}"/>')
    return svg(WIDTH, base + BOTTOM, parts)
