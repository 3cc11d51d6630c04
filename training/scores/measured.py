"""The measurements of a checkpoint in its `measured.json`, from which the model card is written."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from prismoe.training.data.questions import TEMPLATES, Topic

FILE = "measured.json"
ADVERTISED_GAIN = 0.30  # a topic is advertised if it beats the commonest answer by this much on every split


class Score(BaseModel):
    """The share of exactly right answers for one split and topic, and that of the best constant answers."""

    model_config = ConfigDict(extra="forbid")

    split: str
    look: Literal["whole", "small", "scene"] = "whole"
    """How the pictures show their drawings."""
    topic: Topic
    questions: int
    right: float
    error: float | None = None
    """Its standard error, which treats drawings as independent."""
    majority: float


class LayerScores(BaseModel):
    """One MoE layer over the test pictures: tail tokens (LTDR, Eq. 11), RPV, and loads by modality."""

    model_config = ConfigDict(extra="forbid")

    layer: int
    tail_share: float  # vision tokens whose RPV is above their own picture's mean
    rpv_skew: float  # of the vision tokens; a long right tail is well above 0
    rpv_vision: float
    rpv_text: float
    load_vision: list[float]  # each expert's share of the tokens' choices
    load_text: list[float]


class StageRecord(BaseModel):
    """The duration and the loss curve of a stage."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    seconds: float
    curve: list[dict[str, float]]


class CheckpointScores(BaseModel):
    """All figures of the model card."""

    model_config = ConfigDict(extra="forbid")

    parameters: int
    moe_layers: list[int]
    stages: list[StageRecord]
    routing_before: list[LayerScores]  # of the upcycled model before its training
    routing: list[LayerScores]
    scored: Literal["offline", "served"]
    scores: list[Score]
    old_scores: list[Score] = []
    """Of the exam of single drawings, where `scores` are of the exam of scenes."""
    validation: list[Score] = []
    """Of the split that a run is chosen on."""
    notes: list[str] = []  # other facts about this checkpoint for readers of the card

    @classmethod
    def read(cls, folder: Path) -> "CheckpointScores":
        """Read the measurements of the checkpoint in `folder`."""
        return cls.model_validate_json((folder / FILE).read_text())

    def write(self, folder: Path) -> None:
        """Write the measurements into the checkpoint's folder."""
        (folder / FILE).write_text(self.model_dump_json(indent=1) + "\n")

    def advertised(self) -> list[Topic]:
        """The topics that the model answers well enough to advertise."""
        asked = {score.topic for score in self.scores}
        weak = {score.topic for score in self.scores if score.right < score.majority + ADVERTISED_GAIN}
        return [topic for topic in TEMPLATES if topic in asked - weak]
