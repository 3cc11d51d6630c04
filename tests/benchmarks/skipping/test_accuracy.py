"""The plain threshold, the scoring of the exam's answers, and the page in docs/."""

from pathlib import Path
from typing import Any

import pytest

from prismoe.benchmarks.skipping.accuracy import Choice, measured, plain_routing
from prismoe.benchmarks.skipping.page import plot, replaced, section, verdict
from prismoe.benchmarks.skipping.results import Difference, Measured
from prismoe.model_plugins.tools.calibrate.fits.fit import RouterFit
from prismoe.model_plugins.tools.evaluate.questions import Question
from tests.model_plugins.tools.calibrate.fits.recordings import calibration_data, routed, samples
from tests.paths import REPOSITORY

DOCS = REPOSITORY / "docs"
ASKED = [Question(Path(f"{number // 2}.png"), "?", ("yes",)) for number in range(4)]


def row(answers: list[str], text_uses: int, image_uses: int) -> dict[str, Any]:
    """A row in the form of `prismoe evaluate`, with 20 text tokens and 80 image tokens."""
    uses, tokens = {"text": text_uses, "image": image_uses}, {"text": 20, "image": 80}
    return {
        "answers": answers,
        "expert_uses": uses,
        "routed_tokens": tokens,
        "experts_per_token": {name: uses[name] / tokens[name] for name in uses},
        "accuracy": answers.count("yes") / 4,
        "interval": [0.1, 0.9],
    }


@pytest.mark.parametrize("share", [0.25, 0.5, 0.88])
def test_the_plain_threshold_skips_the_share_by_the_weight_alone(share: float) -> None:
    data = calibration_data(samples(), "weights", kept=0)
    routings = routed(data, RouterFit(plain_routing(data, share))).values()
    uses = [2 * len(routing.count_T) for routing in routings]
    assert sum(int(routing.count_T.sum()) for routing in routings) == sum(uses) - round(share * sum(uses))
    kept = min(float(routing.weights_TA[routing.weights_TA > 0].min()) for routing in routings)
    assert kept >= plain_routing(data, share)["text_threshold"]


def test_the_figures_of_the_answers() -> None:
    chosen = [Choice(0.5, "search", {"a": 1}, 0.01), Choice(0.5, "plain", {"b": 2}, 0.3)]
    rows = [
        row(["yes"] * 4, 40, 160),
        row(["yes", "yes", "no", "yes"], 40, 50),
        row(["no", "no", "no", "yes"], 10, 100),
    ]
    found = measured(chosen, rows, ASKED, drawings=7)
    assert [one.skipped for one in found.rows] == [1 - 90 / 200, 1 - 110 / 200]
    assert [one.score.accuracy for one in found.rows] == [0.75, 0.25]
    assert (found.nothing_skipped.accuracy, found.questions, found.pictures) == (1, 4, 2)
    difference = found.difference["50%"]
    assert (difference.share, difference.won, difference.lost) == (0.5, 2, 0)
    assert difference.interval == (0, 1)  # two pictures, one of which has both gains
    lines = section(found).splitlines()
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == [
        *("50%", "MoDES's search", "55.0%", "75.0% (10.0 to 90.0)", "+50.0 (+0.0 to +100.0)", "2, 0"),
        *("2.00", "0.62", "0.01"),
    ]
    assert lines[-1].endswith("about 2 drawings; the thresholds were chosen from 7 others. "
                              "The two can't be told apart at 50%.")  # fmt: skip


def test_the_verdict_names_the_shares_whose_interval_excludes_zero() -> None:
    def difference(low: float, high: float) -> Difference:
        return Difference(share=(low + high) / 2, interval=(low, high), won=0, lost=0)

    found = {"25%": (-0.1, 0.1), "50%": (0.01, 0.1), "75%": (0.2, 0.3), "88%": (-0.3, -0.1), "90%": (0, 0)}
    assert verdict((share, difference(*ends)) for share, ends in found.items()) == (
        "The search is better than the plain threshold at 50% and 75%. "
        "The plain threshold is better than the search at 88%. The two can't be told apart at 25% and 90%."
    )


def test_the_page_has_the_measured_figures() -> None:
    found = Measured.model_validate_json((DOCS / "skip-accuracy.json").read_text())
    page = (DOCS / "evaluation.md").read_text()
    assert replaced(page, section(found)) == page
    assert section(found) in page
    assert (DOCS / "skip-accuracy.svg").read_text() == plot(found)
