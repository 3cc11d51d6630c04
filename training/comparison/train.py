"""Make a contender's checkpoint: train it, or calibrate the trained baseline."""

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from prismoe.training.comparison.contenders import Calibrated, Trained
from prismoe.training.comparison.measured import TrainingFigures, TrainingStep
from prismoe.training.comparison.routing_figures import (
    entropy_bits,
    first_choices_variation,
    load_variation,
    top_ks,
)
from prismoe.training.comparison.start import start
from prismoe.training.data.pictures import Pictures
from prismoe.training.model.checkpoint import export
from prismoe.training.model.moe_llava import LayerDecision
from prismoe.training.prismoji import Recipe, Trainer
from prismoe.training.stages import StageSettings

SETTINGS = StageSettings(steps=100, language_rate=5e-4, projector_rate=3e-4)
"""The recipe's last stage, shorter."""
EVERY = 5
"""Steps between two that are recorded."""


class Recorder:
    """Records a training, step by step."""

    def __init__(self, ks: Sequence[int]) -> None:
        """`ks` is how many experts a token chooses first, in each MoE layer."""
        self.ks = ks
        self.steps: list[TrainingStep] = []
        self.times = [time.monotonic()]

    def __call__(self, step: int, losses: Mapping[str, Tensor], routings: Sequence[LayerDecision]) -> None:
        self.times.append(time.monotonic())
        if step % EVERY == 0:
            self.steps.append(
                TrainingStep(
                    step=step,
                    load_variation=load_variation(routings),
                    first_choices_variation=first_choices_variation(routings, self.ks),
                    entropy_bits=entropy_bits(routings),
                    answer_loss=losses["answer"].item(),
                )
            )

    def figures(self) -> TrainingFigures:
        """What was recorded."""
        seconds = [after - before for before, after in pairwise(self.times)]
        return TrainingFigures(
            seconds=sum(seconds), step_seconds=statistics.median(seconds), steps=self.steps
        )


def train(
    contender: Trained, settings: StageSettings, pictures: Pictures, cache: Path, folder: Path
) -> TrainingFigures:
    """Train from the recipe's dense model, which trains first where the cache lacks it, and export.

    Every contender of a seed sees the same pictures and questions in the same order.
    """
    trainer = Trainer(Recipe(), pictures, cache)
    model = start(trainer.taught(), trainer.recipe.moe_layers, contender)
    settings = settings.model_copy(update={"router": contender.training})
    recorder = Recorder(top_ks(model))
    trainer.train("upcycle", model, settings, contender.seed, recorder)
    draft = folder.with_name(f"{folder.name}.whole")
    export(model, trainer.tokenizer, draft)
    draft.replace(folder)
    return recorder.figures()


def calibrate(contender: Calibrated, baseline: Path, folder: Path) -> None:
    """Fit a router to the trained baseline."""
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    command = [sys.executable, "-m", "prismoe.server.commands.cli", "calibrate", str(baseline), str(draft)]
    subprocess.run([*command, *contender.options], check=True)
    draft.replace(folder)
