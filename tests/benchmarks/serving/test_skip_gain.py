"""The uses that the skipping benchmark skips, and its arithmetic."""

import json

import pytest

from prismoe.benchmarks.serving.skip_gain import SKIPPED, Pair, kept_uses, missing, plot, row
from tests.paths import REPOSITORY


@pytest.mark.parametrize("skipped", [0, 0.3, 0.6, 0.88])
@pytest.mark.parametrize("tokens", [10, 512])
def test_text_keeps_all_experts_and_vision_the_remaining_share(tokens: int, skipped: float) -> None:
    kept_T = kept_uses(tokens, 8, skipped)
    is_text_T = kept_T.new_tensor(range(tokens)) % 5 == 0
    assert kept_T[is_text_T].tolist() == [8] * int(is_text_T.sum())
    vision_T = kept_T[~is_text_T]
    assert int(vision_T.sum()) == pytest.approx(len(vision_T) * 8 * (1 - skipped), abs=1)
    assert int(vision_T.max() - vision_T.min()) <= 1


def test_the_row_of_a_case() -> None:
    """The layers take 8 of 10 seconds. If 60% of four fifths are skipped, 52% of the uses remain."""
    reported = row([Pair(8, 10, 4, 6)] * 3, num_layers=3, num_tokens=500, skipped=0.6, top_k=8, floor=2)
    assert reported["layers"] == (2, 2, 2) and reported["layers_floor"] == 4
    assert reported["layers_predicted"] == pytest.approx(1 / 0.52)
    assert reported["prefill"] == pytest.approx((10 / 6,) * 3)
    assert reported["prefill_predicted"] == pytest.approx(10 / (2 + 8 * 0.52))


def test_a_case_that_was_measured_is_not_measured_again() -> None:
    rows = [row([Pair(8, 10, 4, 6)], 3, 512, skipped, top_k=8, floor=2) for skipped in (0.0, 0.6)]
    assert missing(rows, 3, [512, 2048]) == [(512, 0.3), (512, 0.88), *((2048, share) for share in SKIPPED)]
    assert missing(rows, 1, [512]) == [(512, share) for share in SKIPPED]


def test_the_docs_have_the_measured_figures() -> None:
    docs = REPOSITORY / "docs"
    page = (docs / "kernels.md").read_text()
    rows = json.loads((docs / "skip-gain.json").read_text())
    assert (docs / "skip-gain.svg").read_text() == plot([one for one in rows if one["tokens"] == 2048])
    cells = (
        "| {tokens:,} | {skipped:.0%} | {pairs} | {layers} | {layers_predicted:.2f} "
        "| {prefill} | {prefill_predicted:.2f} |"
    )
    assert len(rows) >= 8
    for one in rows:
        ratios = {name: "{1:.2f} ({0:.2f}–{2:.2f})".format(*one[name]) for name in ("layers", "prefill")}
        assert cells.format(**one | ratios) in page
