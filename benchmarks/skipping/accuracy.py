"""Compares the accuracy of two rules for skipping experts: MoDES's search for thresholds, and one threshold.

`python -m prismoe.benchmarks.skipping.accuracy` takes some minutes. The bundled model routes by top-k with
k = 2, and a rule skips some of the experts that it chooses. Both rules skip the same share of all expert
uses, and may skip all experts of a token, as MoDES's released code does. `search` has an importance for each
layer and modality and a threshold for each modality, found by `prismoe calibrate --skip-overall`. `plain` is
one threshold of the routing weight for all layers and tokens. Both are fitted to the calibration drawings
alone, which belong to the training set. Then `prismoe evaluate` asks the exam's questions, about drawings
that neither training nor calibration used. npm fetches the drawings that are not in the cache.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prismoe.benchmarks.paths import REPOSITORY
from prismoe.benchmarks.skipping.page import plot, replaced, section
from prismoe.benchmarks.skipping.results import Difference, Measured, Rule, Score, Skipping
from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.tools.calibrate.calibrate import prepared, recorded_checkpoint
from prismoe.model_plugins.tools.calibrate.fits import dual_threshold
from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal
from prismoe.model_plugins.tools.calibrate.fits.quantile import between
from prismoe.model_plugins.tools.calibrate.fits.sketch import merged
from prismoe.model_plugins.tools.evaluate.intervals import paired_bootstrap
from prismoe.model_plugins.tools.evaluate.questions import Question, read_questions
from prismoe.model_plugins.tools.settings import CalibrateSettings
from prismoe.training.data.cases import build_exam
from prismoe.training.data.exam_files import FILE, write_exam
from prismoe.training.data.pictures import Pictures

SHARES = (0.25, 0.5, 0.75, 0.88)
"""The shares of all expert uses to skip. The last is the headline figure of MoDES."""
TOP_K = 2
NOTHING_SKIPPED = {"policy": "topk", "top_k": TOP_K}
NONE_KEPT = {"policy": "dual_threshold", "keep_best": False}
DOCS = REPOSITORY / "docs"


class Choice(NamedTuple):
    """A rule with its thresholds."""

    share: float
    rule: Rule
    routing: Mapping[str, Any]
    divergence: float


def plain_routing(data: CalibrationData, share: float) -> dict[str, Any]:
    """One threshold of the routing weight for all tokens and layers that skips a share of recorded uses."""
    weights = merged([sketch for seen in data.layers.values() for sketch in seen.sketches.values()])
    threshold = between(weights, share)
    return {**NONE_KEPT, "text_threshold": threshold, "vision_threshold": threshold}


def choose(model: Path, max_images: int, folder: Path) -> tuple[list[Choice], int]:
    """Fit both rules to the calibration drawings for each of SHARES; return them and the drawings' number."""
    settings = CalibrateSettings(
        model=str(model),
        destination=folder / "fitted",
        policy="dual_threshold",
        routing=NONE_KEPT,
        max_images=max_images,
        verbose=False,
    )
    calibration, chosen = prepared(settings), []
    with recorded_checkpoint(calibration) as (_, data):
        assert data.divergences is not None
        for share in SHARES:
            goal = Goal(calibration.own_settings, skip_overall=share)
            searched = dual_threshold.fit(data, goal).routing()
            routings: dict[Rule, dict[str, Any]] = {"search": searched, "plain": plain_routing(data, share)}
            found = data.divergences([*routings.values()])
            chosen += [
                Choice(share, rule, routing, divergence)
                for (rule, routing), divergence in zip(routings.items(), found, strict=True)
            ]
    return chosen, len(calibration.prompts)


def evaluated(model: Path, questions: Path, routings: Sequence[Mapping[str, Any]], folder: Path) -> Any:
    """Run `prismoe evaluate`, and return the rows that it writes."""
    file = folder / "evaluated.json"
    command = [sys.executable, "-m", "prismoe.server.commands.cli", "evaluate", str(model)]
    command += [option for routing in routings for option in ("--routing", json.dumps(routing))]
    subprocess.run([*command, "--questions", str(questions), "--json", str(file)], check=True)
    return json.loads(file.read_text())["routings"]


def measured(
    chosen: Sequence[Choice], rows: Sequence[Mapping[str, Any]], asked: Sequence[Question], drawings: int
) -> Measured:
    """The figures to keep. The first row skips nothing, and the others belong to the choices."""
    first, *others = rows
    skipping = [
        Skipping(
            **choice._asdict(),
            skipped=1 - sum(row["expert_uses"].values()) / (TOP_K * sum(row["routed_tokens"].values())),
            experts_per_token=row["experts_per_token"],
            score=_score(row),
        )
        for choice, row in zip(chosen, others, strict=True)
    ]
    right = {
        (choice.share, choice.rule): _right(asked, row["answers"])
        for choice, row in zip(chosen, others, strict=True)
    }
    return Measured(
        calibration_pictures=drawings,
        questions=len(asked),
        pictures=len({question.image for question in asked}),
        nothing_skipped=_score(first),
        rows=skipping,
        difference={
            f"{share:.0%}": _difference(asked, right[share, "search"], right[share, "plain"])
            for share in dict.fromkeys(choice.share for choice in chosen)
        },
    )


def _score(row: Mapping[str, Any]) -> Score:
    return Score(accuracy=row["accuracy"], interval=row["interval"])


def _right(asked: Sequence[Question], answers: Sequence[str]) -> list[bool]:
    return [question.is_right(answer) for question, answer in zip(asked, answers, strict=True)]


def _difference(asked: Sequence[Question], search: Sequence[bool], plain: Sequence[bool]) -> Difference:
    won = sum(ours and not theirs for ours, theirs in zip(search, plain, strict=True))
    lost = sum(theirs and not ours for ours, theirs in zip(search, plain, strict=True))
    interval = paired_bootstrap(search, plain, [question.image for question in asked])
    return Difference(share=(won - lost) / len(asked), interval=interval, won=won, lost=lost)


def main() -> None:
    """Fit and evaluate the rules, print the section of the page, and write JSON, plot and page."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python -m prismoe.benchmarks.skipping.accuracy --max-images 64",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--max-images", type=int, default=64, help="calibration drawings to use, of 256 (default: 64)"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="folder of the exam's drawings (default: .cache)"
    )
    parser.add_argument(
        "--docs",
        type=Path,
        default=DOCS,
        help="folder to write evaluation.md and its plot to (default: docs)",
    )
    arguments = parser.parse_args()
    drawings = Pictures(arguments.cache / "emoji")
    drawings.fetch()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_exam(build_exam(drawings), folder / "exam")
        model = folder / "topk"
        convert = [sys.executable, "-m", "prismoe.server.commands.cli", "convert", str(bundled_checkpoint())]
        subprocess.run([*convert, str(model), "--routing", json.dumps(NOTHING_SKIPPED)], check=True)
        chosen, calibrated_on = choose(model, arguments.max_images, folder)
        questions = folder / "exam" / FILE
        routings = [NOTHING_SKIPPED, *(choice.routing for choice in chosen)]
        rows = evaluated(model, questions, routings, folder)
        found = measured(chosen, rows, read_questions(questions), calibrated_on)
    (arguments.docs / "skip-accuracy.json").write_text(found.model_dump_json(indent=1) + "\n")
    (arguments.docs / "skip-accuracy.svg").write_text(plot(found))
    page = arguments.docs / "evaluation.md"
    page.write_text(replaced(page.read_text(), section(found)))
    print(section(found))


if __name__ == "__main__":
    main()
