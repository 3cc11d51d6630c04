"""What was measured of one contender, kept as JSON."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict

from prismoe.training.comparison.prefill import Ratio
from prismoe.training.data.cases import Case


class ContenderScores(BaseModel):
    """One contender, served."""

    model_config = ConfigDict(extra="forbid")

    right: list[bool]
    """Whether each question of the exam was answered to the letter."""
    vision_experts: float
    """The mean uses of an expert in a layer by a token of vision."""
    text_experts: float
    load_variation: float
    """CV_mean over all tokens (IDA-MoE, Sec. 5.1)."""
    first_choices_variation: float
    """The same of each token's first `top_k` choices alone, without what tail tokens get on top."""
    entropy_bits: float
    prefill: Ratio


class Mean(NamedTuple):
    """A mean and its standard error."""

    value: float
    error: float


def mean_by_drawing(cases: Sequence[Case], values: Sequence[float]) -> Mean:
    """The questions' mean; its error takes drawings, not questions, as independent."""
    by_drawing: dict[int, list[float]] = defaultdict(list)
    for case, value in zip(cases, values, strict=True):
        by_drawing[case.drawing].append(value)
    mean = math.fsum(values) / len(values)
    sums = torch.tensor([sum(value - mean for value in own) for own in by_drawing.values()])
    drawings = len(by_drawing)
    error = (sums.square().sum() * drawings / max(drawings - 1, 1)).sqrt().item() / len(values)
    return Mean(mean, error)
