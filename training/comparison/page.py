"""docs/router-comparison.md, out of what was measured and page.md, which is written by hand."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from prismoe.training.comparison.contenders import BASELINE, SEEDED
from prismoe.training.comparison.rows import Row
from prismoe.training.comparison.table import table, topics_table
from prismoe.training.data.cases import Case
from prismoe.training.data.scene_exam import QUESTIONS
from prismoe.training.stages import StageSettings

NAME = "router-comparison"
TEXT_OF_PAGE = Path(__file__).with_name("page.md")


def page(
    cases: Sequence[Case], old_cases: Sequence[Case], rows: Mapping[str, Row], settings: StageSettings
) -> str:
    """The page's text."""
    runs = [run for row in rows.values() for run in row.runs]
    seconds = sum(run.scores.seconds + (run.training.seconds if run.training else 0) for run in runs)
    baseline = rows[BASELINE].step_seconds or 0
    return Template(TEXT_OF_PAGE.read_text()).substitute(
        table=table(cases, old_cases, rows),
        topics=topics_table(cases, rows),
        questions=f"{len(cases):,}",
        old_questions=f"{len(old_cases):,}",
        topic_questions=QUESTIONS,
        drawings=len({drawing for case in cases for drawing in case.drawings}),
        seeded=", ".join(f"`{name}`" for name in SEEDED),
        runs=len(runs),
        hours=f"{seconds / 3600:.1f}",
        machine=_machine(),
        steps=settings.steps,
        batch=settings.batch,
        step_seconds=f"{baseline:.2f}",
    )


def _machine() -> str:
    found = Path("/proc/cpuinfo").read_text()
    cpu = re.search(r"model name\s*: (.*)", found)
    return f"{len(os.sched_getaffinity(0))} cores of {cpu[1] if cpu else platform.machine()}"
