"""Draws plots as SVG: lines over numbers or names, and a table of shares as colours."""

import math
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    # Colour-blind readers can distinguish these.
    "axes.prop_cycle": "cycler('color', ['0072b2', 'd55e00', '009e73', 'cc79a7', 'e69f00', '56b4e9'])",
    "axes.titlelocation": "left",
    "font.sans-serif": "DejaVu Sans",  # matplotlib has it; its default writes ten more names into each text
    "grid.color": "0.8",
    "legend.frameon": False,
    **{f"axes.spines.{side}": False for side in ("bottom", "left", "right", "top")},
    "lines.markersize": 4,
    "savefig.bbox": "tight",
    "svg.fonttype": "none",
    "svg.hashsalt": "prismoe",
    "xtick.bottom": False,
    "ytick.left": False,
}
MARKED = 20
"""Lines with at most this many points have dots."""

Points = Sequence[tuple[float, float]] | Sequence[tuple[str, float]]


@rc_context(STYLE)
def lines(title: str, x_title: str, series: Mapping[str, Points]) -> str:
    """An SVG with a line for each series, through its points (x, y). Names as x are equally spaced."""
    figure = Figure((5.5, 3.5))
    axes = figure.subplots()
    for name, points in series.items():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "o-" if len(points) <= MARKED else "-", label=name, gid=name)
    axes.set(title=title, xlabel=x_title, ylim=(0, None))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return _svg(figure)


@rc_context(STYLE | {"axes.grid": False})
def shares(title: str, rows: Mapping[str, Sequence[Sequence[float]]], columns: Sequence[str]) -> str:
    """An SVG with a row of cells for each name, in groups with gaps between: white is 0, the darkest 1."""
    cells = [[share for group in groups for share in (*group, math.nan)] for groups in rows.values()]
    starts = [column for column in range(len(cells[0])) if column == 0 or math.isnan(cells[0][column - 1])]
    figure = Figure((0.2 * len(cells[0]), 0.3 * len(cells)))
    axes = figure.subplots()
    axes.pcolor(cells, cmap="Blues", vmin=0, vmax=1, edgecolor="0.8", gid="shares")
    axes.set_xticks(starts, columns, ha="left")
    axes.set_yticks([row + 0.5 for row in range(len(rows))], list(rows))
    axes.tick_params(labeltop=True, labelbottom=False)
    axes.invert_yaxis()
    axes.set_title(title)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    """The figure as SVG. The same data always gives the same text."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata={"Creator": None, "Date": None})
    return file.getvalue()
