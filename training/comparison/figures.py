"""The comparison's figures, among them the papers' remade from its runs, as SVG."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from prismoe.training.comparison.contenders import SEEDED
from prismoe.training.comparison.measured import TrainingFigures
from prismoe.training.comparison.page import NAME
from prismoe.training.comparison.rows import Accuracies, Row
from prismoe.training.data.cases import Case
from prismoe.training.intervals import INTERVAL
from prismoe.training.plots import COLOURS, STYLE, svg

BESIDE = {"vision": COLOURS[0], "text": COLOURS[1]}


def figures(cases: Sequence[Case], rows: Mapping[str, Row]) -> dict[str, str]:
    """The figures by file name. All but the first and the last are of the rows with three seeds."""
    seeded = {name: rows[name] for name in SEEDED if name in rows}
    return {
        f"{NAME}.svg": accuracy(cases, rows),
        f"{NAME}-rpv.svg": rpv(seeded),
        f"{NAME}-load.svg": load(seeded),
        f"{NAME}-training.svg": training(seeded),
        f"{NAME}-entropy.svg": entropy(rows),
    }


@rc_context(STYLE | {"axes.grid.axis": "x"})
def accuracy(cases: Sequence[Case], rows: Mapping[str, Row]) -> str:
    """The share of right answers with its 95% interval."""
    accuracies = Accuracies(cases, rows, lambda of: of.right)
    shares = [accuracies.share(name) for name in rows]
    figure = Figure((5, 0.3 * len(shares) + 0.5))
    axes = figure.subplots()
    margins = [INTERVAL * share.error for share in shares]
    axes.errorbar([share.value for share in shares], list(rows), xerr=margins, fmt="o")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.invert_yaxis()
    axes.set_title(f"Right answers to {len(cases)} questions, with 95% intervals")
    return svg(figure)


def rpv(rows: Mapping[str, Row]) -> str:
    """RPV by modality (LTDR, Figs. 1b and 5), of the first seed."""

    def draw(axes: Axes, row: Row, layer: int) -> None:
        own = row.runs[0].scores.layers[layer]
        edges = np.linspace(0, own.rpv_widest or 1, len(own.rpv_vision) + 1)
        for modality, shares in (("vision", own.rpv_vision), ("text", own.rpv_text)):
            axes.stairs(shares, edges, label=modality, color=BESIDE[modality])
        axes.set_title(f"{own.above_mean:.0%} above the mean", fontsize="small")
        axes.ticklabel_format(axis="x", scilimits=(-2, 3))

    return _grid("Share of tokens by RPV, a row a router, a column a layer", rows, draw)


def load(rows: Mapping[str, Row]) -> str:
    """Each expert's share of the uses by modality (LTDR, Fig. 4), of the first seed."""

    def draw(axes: Axes, row: Row, layer: int) -> None:
        own = row.runs[0].scores.layers[layer]
        experts = np.arange(len(own.load_vision))
        axes.bar(experts - 0.2, own.load_vision, 0.4, label="vision", color=BESIDE["vision"])
        axes.bar(experts + 0.2, own.load_text, 0.4, label="text", color=BESIDE["text"])
        axes.set_xticks(experts)

    return _grid("Share of the uses by expert, a row a router, a column a layer", rows, draw)


@rc_context(STYLE)
def _grid(title: str, rows: Mapping[str, Row], draw: Callable[[Axes, Row, int], None]) -> str:
    """An axes for each router and layer."""
    layers = len(next(iter(rows.values())).runs[0].scores.layers)
    figure = Figure((3 + 2.5 * layers, 1.3 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), layers, squeeze=False, sharey="row")
    for (name, row), line in zip(rows.items(), grid, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for layer, axes in enumerate(line):
            draw(axes, row, layer)
    figure.suptitle(title)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return svg(figure)


@rc_context(STYLE)
def training(rows: Mapping[str, Row]) -> str:
    """CV_mean of the batches over training (IDA-MoE, Fig. 5), a mean over the seeds."""
    figure = Figure((9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, field, title in (
        (left, "load_variation", "CV_mean over training"),
        (right, "first_choices_variation", "of the first k choices alone"),
    ):
        for number, (name, row) in enumerate(rows.items()):
            steps = _mean_steps(row, field)
            axes.plot(*zip(*steps, strict=True), label=name, color=COLOURS[number % len(COLOURS)])
        axes.set(title=title, xlabel="step")
    left.set_ylim(bottom=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
    return svg(figure)


def _mean_steps(row: Row, field: str) -> list[tuple[int, float]]:
    curves: list[TrainingFigures] = [run.training for run in row.runs if run.training]
    values = np.mean([[getattr(step, field) for step in curve.steps] for curve in curves], axis=0)
    return [(step.step, float(value)) for step, value in zip(curves[0].steps, values, strict=True)]


@rc_context(STYLE | {"axes.grid.axis": "both"})
def entropy(rows: Mapping[str, Row]) -> str:
    """Routing entropy against the perplexity of the right answers (IDA-MoE, Fig. 6)."""
    figure = Figure((8, 6))
    axes = figure.subplots()
    for name, row in rows.items():
        x, y = row.mean(lambda of: of.entropy_bits), row.mean(lambda of: of.perplexity)
        axes.plot(x, y, "o", color=COLOURS[0])
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(4, 2), fontsize="x-small")
    axes.set(title="Perplexity of the right answers by routing entropy", xlabel="bits", ylabel="perplexity")
    return svg(figure)
