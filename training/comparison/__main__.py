"""Compare routers: `python -m prismoe.training.comparison --out DIR`.

Every contender is trained, then served beside the baseline and measured. DIR keeps every checkpoint and every
measurement, so an interrupted run goes on where it stopped, and holds the results in the end: table.md and
accuracy.svg.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch

from prismoe.training.comparison.contenders import BASELINE, CONTENDERS, Trained
from prismoe.training.comparison.measure import measure
from prismoe.training.comparison.measured import ContenderScores
from prismoe.training.comparison.table import plot, table
from prismoe.training.comparison.train import SETTINGS, calibrate, train
from prismoe.training.data.cases import build_exam
from prismoe.training.data.pictures import Pictures
from prismoe.training.scores.measure import serving

CHECKPOINT, MEASURED = "checkpoint", "measured.json"


class Comparison:
    """What is in DIR, and how it comes to be there."""

    def __init__(self, out: Path, cache: Path, steps: int) -> None:
        self.out, self.cache = out, cache
        self.settings = SETTINGS.model_copy(update={"steps": steps})
        self.pictures = Pictures(cache / "emoji")
        self.pictures.fetch()
        self.exam = build_exam(self.pictures)

    def checkpoint(self, name: str) -> Path:
        """A contender's checkpoint, which is made where DIR lacks it."""
        checkpoint, contender = self._folder(name) / CHECKPOINT, CONTENDERS[name]
        if checkpoint.exists():
            return checkpoint
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(contender, Trained):
            train(contender, self.settings, self.pictures, self.cache / "prismoji", checkpoint)
        else:
            calibrate(contender, self.checkpoint(BASELINE), checkpoint)
        return checkpoint

    def measure(self, names: Iterable[str]) -> None:
        """Measure the contenders that DIR has no measurement of, beside one server of the baseline."""
        with serving(str(self.checkpoint(BASELINE)), None) as baseline_url:
            for name in names:
                file = self._folder(name) / MEASURED
                if not file.exists():
                    result = measure(self.checkpoint(name), baseline_url, self.exam)
                    file.write_text(result.model_dump_json(indent=1) + "\n")

    def write(self) -> None:
        """Write table and plot of everything that DIR has a measurement of."""
        files = {name: self._folder(name) / MEASURED for name in CONTENDERS}
        results = {
            name: ContenderScores.model_validate_json(file.read_text())
            for name, file in files.items()
            if file.exists()
        }
        (self.out / "table.md").write_text(table(self.exam.cases, results) + "\n")
        (self.out / "accuracy.svg").write_text(plot(self.exam.cases, results))

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
        choices=CONTENDERS,
        default=list(CONTENDERS),
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
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    comparison = Comparison(arguments.out, arguments.cache, arguments.steps)
    names = list(dict.fromkeys([BASELINE, *arguments.routers]))
    for name in names:
        comparison.checkpoint(name)
    comparison.measure(names)
    comparison.write()


if __name__ == "__main__":
    main()
