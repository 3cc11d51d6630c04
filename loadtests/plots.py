"""Plots as SVG text: lines over a number, and a table of shares as colours."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 680, 340, 70, 200, 40, 50
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # told apart by colour-blind readers
TICKS = 5
CELL, NAME_WIDTH = 16, 150

Points = Sequence[tuple[float, float]]


def lines(title: str, x_title: str, series: Mapping[str, Points], x_labels: Sequence[str] = ()) -> str:
    """Up to six lines through points (x, y), from 0 up.

    With `x_labels`, x counts their places and the axis says them; else it says numbers.
    """
    points = [point for line in series.values() for point in line]
    high = _rounded_up(max((y for _, y in points), default=1.0))
    wide = max(len(x_labels) - 1 if x_labels else max((x for x, _ in points), default=1.0), 1e-9)
    base, full = HEIGHT - BOTTOM, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return round(LEFT + x / wide * (WIDTH - LEFT - RIGHT), 1), round(base - y / high * full, 1)

    parts = [_text(LEFT, 24, title, size=15), _text(LEFT, HEIGHT - 12, x_title)]
    for tick in range(TICKS + 1):
        _, y_place = at(0, high * tick / TICKS)
        parts.append(f'<path d="M{LEFT} {y_place}H{WIDTH - RIGHT}" stroke="#ccc"/>')
        parts.append(_text(LEFT - 8, y_place + 4, f"{high * tick / TICKS:g}", anchor="end"))
    numbers = [wide * tick / TICKS for tick in range(TICKS + 1)]
    shown = list(enumerate(x_labels)) if x_labels else [(x, f"{x:.3g}") for x in numbers]
    parts += [_text(at(x, 0)[0], base + 18, label, anchor="middle") for x, label in shown]
    for row, ((name, line), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        places = [at(x, y) for x, y in line]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(places) <= 20:
            parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places]
        parts.append(f'<circle cx="{WIDTH - RIGHT + 16}" cy="{TOP + 20 * row + 10}" r="4" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT + 26, TOP + 20 * row + 14, name))
    return _svg(WIDTH, HEIGHT, parts)


def shares(title: str, rows: Mapping[str, Sequence[Sequence[float]]], columns: Sequence[str]) -> str:
    """A row of coloured cells by name, in groups with a gap between: white is 0, full colour 1."""
    groups = [len(group) for group in next(iter(rows.values()), ())]
    starts = [NAME_WIDTH + sum(groups[:index]) * CELL + index * CELL for index in range(len(groups))]
    parts = [_text(10, 24, title, size=15)]
    parts += [_text(x, 46, name) for x, name in zip(starts, columns, strict=True)]
    for row, (name, values) in enumerate(rows.items()):
        y = 56 + row * (CELL + 4)
        parts.append(_text(10, y + 12, name))
        for start, group, colour in zip(starts, values, COLOURS * len(groups), strict=False):
            parts += [
                f'<rect x="{start + index * CELL}" y="{y}" width="{CELL - 1}" height="{CELL}" '
                f'fill="{colour}" fill-opacity="{min(value, 1):.3f}" stroke="#ccc" stroke-width="0.5"/>'
                for index, value in enumerate(group)
            ]
    width = NAME_WIDTH + (sum(groups) + len(groups)) * CELL + 20
    return _svg(max(width, 420), 70 + len(rows) * (CELL + 4), parts)


def _rounded_up(value: float) -> float:
    """A little more than `value`, whose fifths are short numbers."""
    if value <= 0:
        return 1.0
    magnitude = 10.0 ** (len(str(int(value))) - 1) if value >= 1 else 0.1
    while magnitude > value:
        magnitude /= 10
    return next(magnitude * step for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if magnitude * step >= value)


def _text(x: float, y: float, words: str, size: int = 12, anchor: str = "start") -> str:
    return (
        f'<text x="{x}" y="{y}" font-family="sans-serif" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
