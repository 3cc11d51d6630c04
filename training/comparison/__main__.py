"""Compare routers: `python -m prismoe.training.comparison --out DIR`.

Every run is trained, then served beside the baseline and measured. DIR keeps every checkpoint and every
measurement, so an interrupted comparison goes on where it stopped. In the end DIR has the page,
router-comparison.md, and its figures.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from prismoe.training.comparison.contenders import BASELINE, CONTENDERS, ROUTERS, Trained, runs
from prismoe.training.comparison.figures import figures
from prismoe.training.comparison.measure import measure
from prismoe.training.comparison.measured import ContenderScores, TrainingFigures
from prismoe.training.comparison.page import NAME, page
from prismoe.training.comparison.rows import Run, rows_of
from prismoe.training.comparison.train import SETTINGS, calibrate, train
from prismoe.training.data.cases import build_exam
from prismoe.training.data.pictures import Pictures
from prismoe.training.data.scene_exam import build_scene_exam
from prismoe.training.scores.measure import serving

CHECKPOINT, TRAINED, MEASURED = "checkpoint", "trained.json", "measured.json"


class Comparison:
    """What is in DIR, and how it comes to be there."""

    def __init__(self, out: Path, cache: Path, steps: int) -> None:
        self.out, self.cache = out, cache
        self.settings = SETTINGS.model_copy(update={"steps": steps})
        self.pictures = Pictures(cache / "emoji")
        self.pictures.fetch()
        self.exam, self.old_exam = build_scene_exam(self.pictures), build_exam(self.pictures)

    def checkpoint(self, name: str) -> Path:
        """A run's checkpoint, which is made where DIR lacks it."""
        folder, contender = self._folder(name), CONTENDERS[name]
        checkpoint = folder / CHECKPOINT
        if checkpoint.exists():
            return checkpoint
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(contender, Trained):
            trained = train(contender, self.settings, self.pictures, self.cache / "prismoji", checkpoint)
            (folder / TRAINED).write_text(trained.model_dump_json(indent=1) + "\n")
        else:
            calibrate(contender, self.checkpoint(BASELINE), checkpoint)
        return checkpoint

    def train(self, names: Iterable[str]) -> None:
        """Make the checkpoints that DIR lacks."""
        lacking = [name for name in names if not (self._folder(name) / CHECKPOINT).exists()]
        for name in tqdm(lacking, desc="train the routers"):
            self.checkpoint(name)

    def measure(self, names: Iterable[str]) -> None:
        """Measure the runs that DIR has no measurement of, beside one server of the baseline."""
        lacking = [name for name in names if not (self._folder(name) / MEASURED).exists()]
        if not lacking:
            return
        with serving(str(self.checkpoint(BASELINE)), None) as baseline_url:
            for name in tqdm(lacking, desc="measure the routers"):
                result = measure(self.checkpoint(name), baseline_url, self.exam, self.old_exam)
                (self._folder(name) / MEASURED).write_text(result.model_dump_json() + "\n")

    def write(self, folder: Path) -> None:
        """Write the page and the figures of everything that DIR has a measurement of."""
        found = {name: self._run(name) for name in CONTENDERS if (self._folder(name) / MEASURED).exists()}
        rows = rows_of(found)
        (folder / f"{NAME}.md").write_text(page(self.exam.cases, self.old_exam.cases, rows, self.settings))
        for file, svg in figures(self.exam.cases, rows).items():
            (folder / file).write_text(svg)

    def _run(self, name: str) -> Run:
        folder = self._folder(name)
        scores = ContenderScores.model_validate_json((folder / MEASURED).read_text())
        file = folder / TRAINED
        return Run(scores, TrainingFigures.model_validate_json(file.read_text()) if file.exists() else None)

    def _folder(self, name: str) -> Path:
        return self.out / name.replace(", ", "-").replace(" ", "-")


def main() -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python -m prismoe.training.comparison --out build/comparison",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to keep checkpoints and results in")
    parser.add_argument(
        "--routers",
        nargs="+",
        choices=ROUTERS,
        default=list(ROUTERS),
        metavar="NAME",
        help=f"train these routers beside {BASELINE} (default: all)",
    )
    parser.add_argument(
        "--steps", type=int, default=SETTINGS.steps, help=f"training steps (default: {SETTINGS.steps})"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(".cache"),
        help="folder of pictures and earlier stages (default: .cache)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="CPU threads to use (default: as PyTorch does)",
    )
    parser.add_argument(
        "--docs", type=Path, help="folder to write the page and its figures to (default: that of --out)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    comparison = Comparison(arguments.out, arguments.cache, arguments.steps)
    names = [run for router in dict.fromkeys([BASELINE, *arguments.routers]) for run in runs(router)]
    comparison.train(names)
    comparison.measure(names)
    comparison.write(arguments.docs or arguments.out)


if __name__ == "__main__":
    main()
