"""Trains prismoji, the bundled model, from scratch: `python -m prismoe.training.prismoji`.

The steps: fetch and render the pictures, distil the image tower, train the language model in four stages,
export, measure, write the model card. Every stage writes a file into the cache, so an interrupted run
continues where it stopped.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedTokenizerFast

from prismoe.training.data.batches import Composer
from prismoe.training.data.calibration_drawings import write_sheet
from prismoe.training.data.cases import build_exam, score
from prismoe.training.data.concepts import CANDIDATE_BY_EMOJI, CANDIDATES
from prismoe.training.data.demo import write_demo
from prismoe.training.data.pictures import Drawing, Pictures
from prismoe.training.data.questions import TEMPLATES
from prismoe.training.data.scene_exam import QUESTIONS, build_scene_exam, build_validation
from prismoe.training.data.splits import split
from prismoe.training.data.tokenizer import build_tokenizer
from prismoe.training.model.checkpoint import export
from prismoe.training.model.moe_llava import ModelConfig, MoELLaVA, upcycle
from prismoe.training.model.tower import ImageTower, TowerConfig
from prismoe.training.scores.card import write_card
from prismoe.training.scores.evaluate import Asker
from prismoe.training.scores.measured import CheckpointScores, StageRecord
from prismoe.training.stages import PictureSource, Stage, StageSettings, Watch, train_stage
from prismoe.training.tower_training import Pool, TowerClassifier, TowerSettings, train_tower

OUTPUT = Path(__file__).parents[1] / "model_plugins" / "checkpoints" / "prismoji"
STAGES: tuple[Stage, ...] = ("read", "align", "teach", "upcycle")


class Recipe(BaseModel):
    """All settings of the training."""

    model_config = ConfigDict(extra="forbid")

    seed: int = 0
    exam_questions: int = QUESTIONS
    moe_layers: tuple[int, ...] = (0, 2)
    eye: TowerSettings = TowerSettings()
    read: StageSettings = StageSettings(steps=700, language_rate=2e-3)
    align: StageSettings = StageSettings(steps=250, projector_rate=2e-3)
    teach: StageSettings = StageSettings(steps=4000, language_rate=1e-3, projector_rate=1e-3, tower_rate=1e-4)
    upcycle: StageSettings = StageSettings(steps=1000, language_rate=5e-4, projector_rate=3e-4)

    @classmethod
    def quick(cls) -> "Recipe":
        """A recipe that runs all stages in about a minute, for tests. The model learns nothing."""
        short = {"steps": 2, "batch": 4}
        recipe = cls(eye=TowerSettings(rounds=1, steps_per_round=2, batch=16), exam_questions=8)
        return recipe.model_copy(update={s: getattr(recipe, s).model_copy(update=short) for s in STAGES})


class Trainer:
    """Runs the stages in order, and skips those that have a file in the cache."""

    def __init__(self, recipe: Recipe, pictures: Pictures, cache: Path) -> None:
        """Load the pictures, and build the tokenizer."""
        cache.mkdir(parents=True, exist_ok=True)
        self.recipe, self.cache = recipe, cache
        self.drawings, pixels = pictures.load()
        self.rgba_NHWC = torch.from_numpy(pixels)
        self.splits = split(self.drawings)
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer()
        self.records: list[StageRecord] = []
        torch.manual_seed(recipe.seed)

    def model(self) -> MoELLaVA:
        """Run the remaining stages, and return the trained model."""
        model = self._upcycled(self.taught())
        self._stage("upcycle", model, partial(self._train, "upcycle", model))
        return model

    def taught(self) -> MoELLaVA:
        """Run the remaining stages before the upcycling, and return the dense model."""
        model = MoELLaVA(ModelConfig(vocab_size=len(self.tokenizer)), TowerConfig())
        tower = model.model.image_tower.image_tower
        self._stage("eye", tower, partial(self._train_tower, tower))
        for stage in STAGES[:-1]:
            self._stage(stage, model, partial(self._train, stage, model))
        return model

    def untrained_experts(self) -> MoELLaVA:
        """The upcycled model before its experts train. The final routing is compared with its routing."""
        dense = MoELLaVA(ModelConfig(vocab_size=len(self.tokenizer)), TowerConfig())
        dense.load_state_dict(torch.load(self.cache / "teach.pt")["weights"])
        return self._upcycled(dense)

    def _upcycled(self, dense: MoELLaVA) -> MoELLaVA:
        """Upcycle the model. Its new routers are the same each time."""
        torch.manual_seed(self.recipe.seed)
        return upcycle(dense, self.recipe.moe_layers)

    def _stage(self, name: str, part: torch.nn.Module, train: Callable[[], list[dict[str, float]]]) -> None:
        file = self.cache / f"{name}.pt"
        if not file.exists():
            began = time.monotonic()
            curve = train()
            record = StageRecord(stage=name, seconds=time.monotonic() - began, curve=curve)
            draft = file.with_suffix(".draft")
            torch.save({"weights": part.state_dict(), "record": record.model_dump()}, draft)
            draft.replace(file)
        saved = torch.load(file)
        part.load_state_dict(saved["weights"])
        self.records.append(StageRecord(**saved["record"]))

    def _train_tower(self, tower: ImageTower) -> list[dict[str, float]]:
        """Train on every training drawing, and on those of the candidates twice."""
        names = [self._label(drawing) for drawing in self.drawings]
        labels = {name: number for number, name in enumerate(sorted({names[i] for i in self.splits.train}))}
        candidates = {candidate.name for candidate in CANDIDATES}
        shown = self.splits.train + [i for i in self.splits.train if names[i] in candidates]
        label_B = torch.tensor([labels[names[i]] for i in shown])
        pool = Pool(self.rgba_NHWC[shown], label_B, self.recipe.eye, tower.config)
        return train_tower(TowerClassifier(tower, len(labels)), pool, self.recipe.eye)

    def _label(self, drawing: Drawing) -> str:
        candidate = CANDIDATE_BY_EMOJI.get(drawing.emoji)
        return candidate.name if candidate else f"emoji {drawing.emoji}"

    def _train(self, stage: Stage, model: MoELLaVA) -> list[dict[str, float]]:
        return self.train(stage, model, getattr(self.recipe, stage), seed=STAGES.index(stage))

    def train(
        self,
        stage: Stage,
        model: MoELLaVA,
        settings: StageSettings,
        seed: int,
        watch: Watch | None = None,
    ) -> list[dict[str, float]]:
        """Train `model` in place on the trainer's drawings, and return the loss curve."""
        config = model.model.image_tower.image_tower.config
        source = PictureSource(self.drawings, self.rgba_NHWC, self.splits.train, config.image_size, seed)
        composer = Composer(self.tokenizer, config.tokens, tuple(TEMPLATES), seed)
        return train_stage(stage, model, source, composer, settings, watch)


def train(recipe: Recipe, pictures: Pictures, cache: Path, output: Path) -> CheckpointScores:
    """Train, export to `output`, measure the exported model, and write the model card."""
    trainer = Trainer(recipe, pictures, cache)
    model = trainer.model()
    export(model, trainer.tokenizer, output)
    before = cache / "before"
    export(trainer.untrained_experts(), trainer.tokenizer, before)
    exam = build_scene_exam(pictures, recipe.exam_questions)
    old_exam, validation = build_exam(pictures), build_validation(pictures, recipe.exam_questions)
    asker = Asker(output)
    measured = CheckpointScores(
        parameters=sum(weight.numel() for weight in model.parameters()),
        moe_layers=list(recipe.moe_layers),
        stages=trainer.records,
        routing_before=Asker(before).routing(exam),
        routing=asker.routing(exam),
        scored="offline",
        scores=score(exam.cases, asker.answers(exam)),
        old_scores=score(old_exam.cases, asker.answers(old_exam)),
        validation=score(validation.cases, asker.answers(validation)),
    )
    measured.write(output)
    write_demo(pictures, output)
    write_card(output)
    return measured


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python -m prismoe.training.prismoji --quick",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(".cache"),
        help="folder for packages, pictures and stage files (default: .cache)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"folder to write the checkpoint to (default: {OUTPUT.name} in the package)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="CPU threads to use (default: PyTorch's)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="run all stages in a minute, without learning anything"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pictures = Pictures(arguments.cache / "emoji")
    pictures.fetch()
    recipe = Recipe.quick() if arguments.quick else Recipe()
    cache = arguments.cache / ("prismoji-quick" if arguments.quick else "prismoji")
    output = arguments.output or (cache / "checkpoint" if arguments.quick else OUTPUT)
    measured = train(recipe, pictures, cache, output)
    write_sheet(pictures, output)
    summary: list[dict[str, Any]] = [result.model_dump() for result in measured.scores]
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
