"""The comparison as a table in Markdown and as a plot."""

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from prismoe.training.comparison.contenders import BASELINE, CONTENDERS, Calibrated
from prismoe.training.comparison.measured import ContenderScores, Mean, mean_by_drawing
from prismoe.training.data.cases import Case
from prismoe.training.data.questions import TEMPLATES
from prismoe.training.plots import STYLE, svg

INTERVAL = 1.96  # standard errors to either side: 95%


def table(cases: Sequence[Case], results: Mapping[str, ContenderScores]) -> str:
    """A row for each router. Of each topic the head says the number of questions."""
    counts = [f"{topic} ({sum(case.topic == topic for case in cases)})" for topic in TEMPLATES]
    head = ["router", *counts, f"all ({len(cases)})", f"minus `{BASELINE}`, points"]
    head += [
        "experts a vision token",
        "a text token",
        "CV_mean",
        "of the first k",
        "entropy, bits",
        "prefill time",
    ]
    lines = [head, ["---"] * len(head)]
    lines += [_row(name, cases, own, results[BASELINE]) for name, own in results.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(name: str, cases: Sequence[Case], own: ContenderScores, baseline: ContenderScores) -> list[str]:
    mark = "*" if isinstance(CONTENDERS[name], Calibrated) else ""
    cells = [f"`{name}`{mark}"]
    for topic in TEMPLATES:
        right = [is_right for case, is_right in zip(cases, own.right, strict=True) if case.topic == topic]
        cells.append(f"{sum(right) / len(right):.1%}")
    share = mean_by_drawing(cases, own.right)
    cells.append(f"{share.value:.1%} ± {share.error:.1%}")
    more = difference(cases, own, baseline)
    cells.append("" if own == baseline else f"{more.value * 100:+.1f} ± {more.error * 100:.1f}")
    cells += [f"{own.vision_experts:.2f}", f"{own.text_experts:.2f}"]
    cells += [f"{own.load_variation:.2f}", f"{own.first_choices_variation:.2f}", f"{own.entropy_bits:.2f}"]
    prefill = own.prefill
    return [*cells, f"{prefill.median:.2f} ({prefill.low:.2f} to {prefill.high:.2f})"]


def difference(cases: Sequence[Case], own: ContenderScores, baseline: ContenderScores) -> Mean:
    """How many more questions a router gets right than the baseline, as a share; question by question."""
    pairs = zip(own.right, baseline.right, strict=True)
    return mean_by_drawing(cases, [a - b for a, b in pairs])


@rc_context(STYLE | {"axes.grid.axis": "x"})
def plot(cases: Sequence[Case], results: Mapping[str, ContenderScores]) -> str:
    """The share of right answers with its 95% interval, as SVG."""
    shares = [mean_by_drawing(cases, own.right) for own in results.values()]
    figure = Figure((5, 0.3 * len(shares)))
    axes = figure.subplots()
    values, margins = [share.value for share in shares], [INTERVAL * share.error for share in shares]
    axes.errorbar(values, list(results), xerr=margins, fmt="o")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.invert_yaxis()
    axes.set_title(f"Right answers to {len(cases)} questions, with 95% intervals")
    return svg(figure)
