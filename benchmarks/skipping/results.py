"""What is kept of a measurement: the file that the page is written from."""

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
    """One rule that was to skip `share` of all uses of experts."""

    share: float
    rule: Rule
    routing: Mapping[str, Any]
    divergence: float
    """From the model that skips nothing, in nats a token of the answers, over the calibration prompts."""
    skipped: float
    """The share of the exam's uses that it did skip."""
    experts_per_token: Mapping[str, float]
    score: Score


class Difference(_Kept):
    """How many more questions are right under the search than under the plain threshold."""

    share: float
    interval: Bounds
    won: int
    lost: int


class Measured(_Kept):
    """The exam under all rules. `difference` is by the share that was to be skipped, as it is printed."""

    calibration_pictures: int
    questions: int
    pictures: int
    nothing_skipped: Score
    rows: list[Skipping]
    difference: Mapping[str, Difference]
