"""Writes a section of docs/evaluation.md and its plot from the measurements."""

from collections.abc import Iterable

from prismoe.benchmarks.skipping.results import Difference, Measured, Rule, Score, Skipping
from prismoe.loadtests.plots import lines

BEGIN, END = "<!-- Written by make bench-skip-accuracy. -->", "<!-- As far as here. -->"
NAMES: dict[Rule, str] = {"search": "MoDES's search", "plain": "plain threshold"}


def replaced(page: str, text: str) -> str:
    """The page with `text` between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def section(found: Measured) -> str:
    """The table, and a sentence with its result."""
    head = ["to be skipped", "rule", "skipped", "right", "search minus plain, points", "won, lost"]
    head += ["experts a token, text", "image", "divergence, nats"]
    nothing = ["0%", "top-k", "0.0%", _right(found.nothing_skipped), "", "", "2.00", "2.00", "0"]
    rows = [head, ["---"] * len(head), nothing, *(_cells(found, row) for row in found.rows)]
    return "\n".join(
        [
            *(f"| {' | '.join(cells)} |" for cells in rows),
            "",
            f"{found.questions:,} questions about {found.pictures} drawings; the thresholds were chosen from "
            f"{found.calibration_pictures} others. {verdict(found.difference.items())}",
        ]
    )


def verdict(differences: Iterable[tuple[str, Difference]]) -> str:
    """A sentence that says which rule is better at which shares."""
    ahead: list[str] = []
    behind: list[str] = []
    open_: list[str] = []
    for share, difference in differences:
        low, high = difference.interval
        (ahead if low > 0 else behind if high < 0 else open_).append(share)
    sentences = [
        f"{what} at {_and(shares)}."
        for what, shares in (
            ("The search is better than the plain threshold", ahead),
            ("The plain threshold is better than the search", behind),
            ("The two can't be told apart", open_),
        )
        if shares
    ]
    return " ".join(sentences)


def plot(found: Measured) -> str:
    """An SVG of both rules' right answers by the share to skip."""
    return lines(
        f"Right answers of {found.questions:,}",
        "of all uses of experts, to be skipped",
        {
            name: [
                ("0%", found.nothing_skipped.accuracy),
                *((f"{row.share:.0%}", row.score.accuracy) for row in found.rows if row.rule == rule),
            ]
            for rule, name in NAMES.items()
        },
    )


def _cells(found: Measured, row: Skipping) -> list[str]:
    more = ["", ""]
    if row.rule == "search":
        difference = found.difference[f"{row.share:.0%}"]
        share, low, high = (f"{100 * value:+.1f}" for value in (difference.share, *difference.interval))
        more = [f"{share} ({low} to {high})", f"{difference.won}, {difference.lost}"]
    experts = [f"{row.experts_per_token[name]:.2f}" for name in ("text", "image")]
    rule = [f"{row.share:.0%}", NAMES[row.rule], f"{row.skipped:.1%}", _right(row.score)]
    return [*rule, *more, *experts, f"{row.divergence:.2g}"]


def _right(score: Score) -> str:
    low, high = score.interval
    return f"{score.accuracy:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def _and(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
