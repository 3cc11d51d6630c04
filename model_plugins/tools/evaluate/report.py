"""Reports the comparison of routings, as a table in Markdown and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prismoe.model_plugins.tools.evaluate.intervals import Interval, paired_bootstrap, wilson
from prismoe.model_plugins.tools.evaluate.questions import Question
from prismoe.model_plugins.tools.evaluate.run import Run


@dataclass(frozen=True)
class Difference:
    """The difference of a routing from the first, over the same questions."""

    share: float
    interval: Interval
    won: int
    """The number of questions that only this routing got right; `lost` is that of the first."""
    lost: int


@dataclass(frozen=True)
class Row:
    """One routing: its `Run`, and the results computed from it."""

    routing: Mapping[str, Any] | None
    policies: Sequence[str]
    not_seen: Sequence[str]
    right: int
    accuracy: float
    interval: Interval
    minus_first: Difference | None
    """The difference from the first row; None in that row."""
    experts_per_token: Mapping[str, float]
    """The mean number of experts of a token in a MoE layer, by modality."""
    expert_uses: Mapping[str, int]
    routed_tokens: Mapping[str, int]
    """The tokens by modality; each token counts once per MoE layer."""
    share_of_first_uses: float | None
    """This routing's uses of experts divided by the first one's; None where none were counted."""
    tokens_per_second: float
    answers: Sequence[str]

    @property
    def name(self) -> str:
        """A short name, for a table."""
        if self.routing is None:
            return f"the checkpoint's own ({', '.join(self.policies) or 'native'})"
        settings = {name: value for name, value in self.routing.items() if name != "policy"}
        parts = [f"{name} {json.dumps(value)}" for name, value in settings.items()]
        return ", ".join([str(self.routing.get("policy")), *parts])


def compare(questions: Sequence[Question], runs: Sequence[Run]) -> list[Row]:
    """Make a row for each routing, compared with the first."""
    right = [_right(questions, run.answers) for run in runs]
    return [
        _row(questions, run, own, runs[0], None if number == 0 else right[0])
        for number, (run, own) in enumerate(zip(runs, right, strict=True))
    ]


def table(questions: Sequence[Question], rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, and a sentence that explains it."""
    modalities = list(dict.fromkeys(name for row in rows for name in row.experts_per_token))
    head = ["routing", "right", "minus the first, points", "won, lost"]
    head += [*(f"experts a token, {name}" for name in modalities), "expert uses", "tokens/s"]
    lines = [head, ["---"] * len(head), *(_cells(row, modalities) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    ]
    pictures = len({question.image for question in questions})
    return "\n".join(
        [
            *text,
            f"{len(questions):,} questions about {pictures:,} pictures. In brackets are 95% intervals: "
            "Wilson's, and that of a bootstrap over the pictures.",
            *dict.fromkeys(sentence for row in rows for sentence in row.not_seen),
        ]
    )


def as_json(model: str, questions: Sequence[Question], max_tokens: int, rows: Sequence[Row]) -> str:
    """The rows as JSON, with the answers in the questions' order."""
    head = {"model": model, "questions": len(questions), "max_tokens": max_tokens}
    return json.dumps({**head, "routings": [asdict(row) for row in rows]}, indent=2)


def _right(questions: Sequence[Question], answers: Sequence[str]) -> list[bool]:
    return [question.is_right(answer) for question, answer in zip(questions, answers, strict=True)]


def _row(
    questions: Sequence[Question], run: Run, right: list[bool], first: Run, first_right: list[bool] | None
) -> Row:
    uses, first_uses = sum(run.expert_uses.values()), sum(first.expert_uses.values())
    return Row(
        run.routing,
        run.policies,
        run.not_seen,
        sum(right),
        sum(right) / len(questions),
        wilson(sum(right), len(questions)),
        None if first_right is None else _difference(questions, right, first_right),
        {name: run.expert_uses.get(name, 0) / tokens for name, tokens in run.routed_tokens.items()},
        run.expert_uses,
        run.routed_tokens,
        uses / first_uses if uses and first_uses else None,
        run.tokens_per_second,
        run.answers,
    )


def _difference(questions: Sequence[Question], right: list[bool], first: list[bool]) -> Difference:
    won = sum(own and not other for own, other in zip(right, first, strict=True))
    lost = sum(other and not own for own, other in zip(right, first, strict=True))
    interval = paired_bootstrap(right, first, [question.image for question in questions])
    return Difference((won - lost) / len(questions), interval, won, lost)


def _cells(row: Row, modalities: Sequence[str]) -> list[str]:
    low, high = row.interval
    cells = [row.name, f"{row.accuracy:.1%} ({100 * low:.1f} to {100 * high:.1f})", "", ""]
    if (more := row.minus_first) is not None:
        points = [f"{100 * share:+.1f}" for share in (more.share, *more.interval)]
        cells[2:] = [f"{points[0]} ({points[1]} to {points[2]})", f"{more.won}, {more.lost}"]
    for name in modalities:
        experts = row.experts_per_token.get(name)
        cells.append("not seen" if experts is None else f"{experts:.2f}")
    uses = row.share_of_first_uses
    return [*cells, "not seen" if uses is None else f"{uses:.1%}", f"{row.tokens_per_second:,.0f}"]
