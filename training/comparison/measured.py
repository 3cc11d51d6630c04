"""What was recorded and measured of one run, kept as JSON."""

from pydantic import BaseModel, ConfigDict

from prismoe.training.comparison.prefill import Ratio


class TrainingStep(BaseModel):
    """One step of a training."""

    model_config = ConfigDict(extra="forbid")

    step: int
    load_variation: float
    """CV_mean of the step's batch."""
    first_choices_variation: float
    entropy_bits: float
    answer_loss: float
    """The mean over the answers' tokens; its exponential is their perplexity."""


class TrainingFigures(BaseModel):
    """How a run trained."""

    model_config = ConfigDict(extra="forbid")

    seconds: float
    step_seconds: float
    """The median step's."""
    steps: list[TrainingStep]


class LayerFigures(BaseModel):
    """One MoE layer over the test pictures, by the training model."""

    model_config = ConfigDict(extra="forbid")

    rpv_widest: float
    """Where the histograms end. They begin at 0."""
    rpv_vision: list[float]
    """The share of the tokens in each bucket."""
    rpv_text: list[float]
    above_mean: float
    """The share of vision tokens whose RPV is above their image's mean."""
    load_vision: list[float]
    """Each expert's share of the uses."""
    load_text: list[float]


class ContenderScores(BaseModel):
    """One run, served."""

    model_config = ConfigDict(extra="forbid")

    seconds: float
    """How long the measurement took."""
    right: list[bool]
    """Whether each question of the exam of scenes was answered to the letter."""
    old_right: list[bool]
    """The same of the exam of single drawings."""
    vision_experts: float
    """The mean uses of an expert in a layer by a token of vision."""
    text_experts: float
    load_variation: float
    """CV_mean over all tokens (IDA-MoE, Sec. 5.1)."""
    first_choices_variation: float
    """The same of each token's first `top_k` choices alone, without what tail tokens get on top."""
    entropy_bits: float
    perplexity: float
    """Of the right answers to the exam of scenes."""
    layers: list[LayerFigures]
    prefill: Ratio
