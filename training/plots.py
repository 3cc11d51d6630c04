"""The common style of the training plots."""

from io import StringIO
from typing import Any

from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
"""Colour-blind readers can distinguish these."""
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "axes.titlelocation": "left",
    "font.sans-serif": "DejaVu Sans",  # matplotlib has this font
    "grid.color": "0.8",
    "legend.frameon": False,
    **{f"axes.spines.{side}": False for side in ("bottom", "left", "right", "top")},
    "savefig.bbox": "tight",
    "svg.fonttype": "none",
    "svg.hashsalt": "prismoe",
    "xtick.bottom": False,
    "ytick.left": False,
}


def svg(figure: Figure) -> str:
    """The figure as SVG. The same data always gives the same text."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata={"Creator": None, "Date": None})
    return file.getvalue()
