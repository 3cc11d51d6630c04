"""The measurements in the JSON file that the page is written from."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Rule = Literal["search", "plain"]
Bounds = tuple[float, float]


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Score(_Kept):
    """Right answers as a share of all, with its 95% interval."""

    accuracy: float
    interval: Bounds


class Skipping(_Kept):
    """One rule that should skip `share` of all expert uses."""

    share: float
    rule: Rule
    routing: Mapping[str, Any]
    divergence: float
    """Divergence from the model that skips nothing: nats for each answer token of the calibration prompts."""
    skipped: float
    """The share of the exam's expert uses that the rule skipped."""
    experts_per_token: Mapping[str, float]
    score: Score


class Difference(_Kept):
    """How many more questions have right answers under the search than under the plain threshold."""

    share: float
    interval: Bounds
    won: int
    lost: int


class Measured(_Kept):
    """The exam's results under all rules. The keys of `difference` are the shares to skip, as printed."""

    calibration_pictures: int
    questions: int
    pictures: int
    nothing_skipped: Score
    rows: list[Skipping]
    difference: Mapping[str, Difference]
