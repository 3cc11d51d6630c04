"""The comparison's tables in Markdown."""

from collections.abc import Callable, Mapping, Sequence

from prismoe.training.comparison.contenders import BASELINE
from prismoe.training.comparison.rows import Accuracies, Row
from prismoe.training.data.cases import Case, Look
from prismoe.training.data.questions import TEMPLATES, Topic
from prismoe.training.intervals import INTERVAL, Mean

LOOKS: dict[Look, str] = {"whole": "single drawings", "small": "small drawings", "scene": "scenes"}


def table(cases: Sequence[Case], old_cases: Sequence[Case], rows: Mapping[str, Row]) -> str:
    """A row for each router: its answers, its routing and its speed."""
    parts = {
        title: Accuracies(cases, rows, lambda of: of.right, _has_look(look)) for look, title in LOOKS.items()
    }
    whole = Accuracies(cases, rows, lambda of: of.right)
    old = Accuracies(old_cases, rows, lambda of: of.old_right)
    head = ["router", "runs", *(f"{title} ({part.questions})" for title, part in parts.items())]
    head += [f"all ({whole.questions})", f"minus `{BASELINE}`, points", f"old exam ({old.questions})"]
    head += ["experts a vision token", "a text token", "CV_mean", "of the first k", "entropy, bits"]
    head += ["perplexity", "training time", "prefill time"]
    lines = []
    for name, row in rows.items():
        cells = [row.label, str(len(row.runs)), *(f"{part.share(name).value:.1%}" for part in parts.values())]
        cells += [_share(whole.share(name)), _points(name, whole), _share(old.share(name))]
        cells += [
            f"{row.mean(lambda of: of.vision_experts):.2f}",
            f"{row.mean(lambda of: of.text_experts):.2f}",
            f"{row.mean(lambda of: of.load_variation):.2f}",
            f"{row.mean(lambda of: of.first_choices_variation):.2f}",
            f"{row.mean(lambda of: of.entropy_bits):.2f}",
            f"{row.mean(lambda of: of.perplexity):.3f}",
        ]
        lines.append([*cells, _training_time(row, rows[BASELINE]), _prefill_time(row)])
    return _markdown([head, *lines])


def topics_table(cases: Sequence[Case], rows: Mapping[str, Row]) -> str:
    """A row for each router: its answers by what is asked."""
    topics = {
        f"{topic}{', small' if look == 'small' else ''}": Accuracies(
            cases, rows, lambda of: of.right, _has_look(look, topic)
        )
        for look in LOOKS
        for topic in TEMPLATES
        if any(map(_has_look(look, topic), cases))
    }
    head = ["router", *(f"{title} ({part.questions})" for title, part in topics.items())]
    lines = [
        [row.label, *(_share(part.share(name)) for part in topics.values())] for name, row in rows.items()
    ]
    return _markdown([head, *lines])


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]))


def _has_look(look: Look, topic: Topic | None = None) -> Callable[[Case], bool]:
    """Whether a question is about such a picture, and on the topic where one is given."""
    return lambda case: case.look == look and topic in (None, case.topic)


def _share(mean: Mean) -> str:
    return f"{mean.value:.1%} ± {INTERVAL * mean.error:.1%}"


def _points(name: str, accuracies: Accuracies) -> str:
    if name == BASELINE:
        return ""
    mean = accuracies.difference(name)
    return f"{mean.value * 100:+.1f} ± {INTERVAL * mean.error * 100:.1f}"


def _training_time(row: Row, baseline: Row) -> str:
    """Over the baseline's."""
    if row.step_seconds is None or baseline.step_seconds is None:
        return ""
    return f"{row.step_seconds / baseline.step_seconds:.2f}"


def _prefill_time(row: Row) -> str:
    median = row.mean(lambda of: of.prefill.median)
    low, high = row.mean(lambda of: of.prefill.low), row.mean(lambda of: of.prefill.high)
    return f"{median:.2f} ({low:.2f} to {high:.2f})"
