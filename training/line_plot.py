"""Line plots as SVG text, for the pages in docs/."""

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 360, 60, 190, 40, 50
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by colour-blind readers too
TICKS = 5


def line_plot(
    title: str, x_title: str, x_labels: Sequence[str], series: Mapping[str, Sequence[float | None]]
) -> str:
    """An SVG of values from 0 to 1, at most four lines; a None leaves a point out.

    A series whose name ends in "published" is drawn as dots alone.
    """
    step = (WIDTH - LEFT - RIGHT) / (len(x_labels) - 1)
    base, full = HEIGHT - BOTTOM, HEIGHT - TOP - BOTTOM

    def at(index: int, value: float) -> tuple[float, float]:
        return round(LEFT + index * step, 1), round(base - value * full, 1)

    parts = [text(LEFT, 24, title, size=15), text(LEFT, HEIGHT - 12, x_title)]
    for tick in range(TICKS + 1):
        _, y = at(0, tick / TICKS)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}" stroke="#ccc"/>')
        parts.append(text(LEFT - 34, y + 4, f"{tick / TICKS:.1f}"))
    parts += [text(at(index, 0)[0] - 12, base + 18, label) for index, label in enumerate(x_labels)]
    for row, ((name, values), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        points = [at(index, value) for index, value in enumerate(values) if value is not None]
        if not name.endswith("published"):
            path = " ".join(f"{x},{y}" for x, y in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>' for x, y in points]
        parts.append(f'<circle cx="{WIDTH - RIGHT + 16}" cy="{TOP + 20 * row + 10}" r="4" fill="{colour}"/>')
        parts.append(text(WIDTH - RIGHT + 26, TOP + 20 * row + 14, name))
    return svg(WIDTH, HEIGHT, parts)


def svg(width: int, height: int, parts: Sequence[str]) -> str:
    """A whole SVG on white."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">\n<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, words: str, size: int = 12) -> str:
    """A line of text that starts at a point."""
    return f'<text x="{x}" y="{y}" font-family="sans-serif" font-size="{size}">{escape(words)}</text>'
