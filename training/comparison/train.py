"""Make a contender's checkpoint: train it, or calibrate the trained baseline."""

import shutil
import subprocess
import sys
from pathlib import Path

from prismoe.training.comparison.contenders import Calibrated, Trained
from prismoe.training.comparison.start import start
from prismoe.training.data.pictures import Pictures
from prismoe.training.model.checkpoint import export
from prismoe.training.prismoji import Recipe, Trainer
from prismoe.training.stages import StageSettings

SETTINGS = StageSettings(steps=100, language_rate=5e-4, projector_rate=3e-4)
"""The recipe's last stage, a sixth as long."""


def train(contender: Trained, settings: StageSettings, pictures: Pictures, cache: Path, folder: Path) -> None:
    """Train from the recipe's dense model, which trains first where the cache lacks it, and export.

    Every contender of a seed sees the same pictures and questions in the same order.
    """
    trainer = Trainer(Recipe(), pictures, cache)
    model = start(trainer.taught(), trainer.recipe.moe_layers, contender)
    settings = settings.model_copy(update={"router": contender.training})
    trainer.train("upcycle", model, settings, seed=contender.seed)
    draft = folder.with_name(f"{folder.name}.whole")
    export(model, trainer.tokenizer, draft)
    draft.replace(folder)


def calibrate(contender: Calibrated, baseline: Path, folder: Path) -> None:
    """Fit a router to the trained baseline."""
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    command = [sys.executable, "-m", "prismoe.server.commands.cli", "calibrate", str(baseline), str(draft)]
    subprocess.run([*command, *contender.options], check=True)
    draft.replace(folder)
