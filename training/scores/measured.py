"""What was measured of a checkpoint, kept beside it as `measured.json`: the model card is written from it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from prismoe.training.data.questions import TEMPLATES, Topic

FILE = "measured.json"
ADVERTISED_GAIN = 0.30  # a topic is advertised if it beats the commonest answer by this much on every split


class Score(BaseModel):
    """How many answers of one split and topic were right to the letter, beside the best constant answers."""

    model_config = ConfigDict(extra="forbid")

    split: str
    look: Literal["whole", "small", "scene"] = "whole"
    """How the pictures show their drawings."""
    topic: Topic
    questions: int
    right: float
    error: float | None = None
    """Its standard error, which takes drawings as independent."""
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
    """How long a stage took, and how its losses fell."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    seconds: float
    curve: list[dict[str, float]]


class CheckpointScores(BaseModel):
    """Everything the model card tells in figures."""

    model_config = ConfigDict(extra="forbid")

    parameters: int
    moe_layers: list[int]
    stages: list[StageRecord]
    routing_before: list[LayerScores]  # of the upcycled model before it trained
    routing: list[LayerScores]
    scored: Literal["offline", "served"]
    scores: list[Score]
    old_scores: list[Score] = []
    """Of the exam of single drawings, where `scores` are of the exam of scenes."""
    validation: list[Score] = []
    """Of the split that a run is chosen on."""
    notes: list[str] = []  # what else a reader should know of how this checkpoint came about

    @classmethod
    def read(cls, folder: Path) -> "CheckpointScores":
        """Those of the checkpoint in `folder`."""
        return cls.model_validate_json((folder / FILE).read_text())

    def write(self, folder: Path) -> None:
        """Keep them beside the checkpoint."""
        (folder / FILE).write_text(self.model_dump_json(indent=1) + "\n")

    def advertised(self) -> list[Topic]:
        """The topics that the model answers well enough to say so."""
        asked = {score.topic for score in self.scores}
        weak = {score.topic for score in self.scores if score.right < score.majority + ADVERTISED_GAIN}
        return [topic for topic in TEMPLATES if topic in asked - weak]
