"""Compare routers: `python -m prismoe.training.comparison --out DIR`.

Each contender is trained, served beside the baseline and measured. DIR keeps every checkpoint and every
measurement, so an interrupted run goes on where it stopped, and holds the results in the end: table.md and
accuracy.svg.
"""

import argparse
from pathlib import Path

import torch

from prismoe.training.cases import build_exam
from prismoe.training.comparison.contenders import BASELINE, CONTENDERS, Trained
from prismoe.training.comparison.measure import measure
from prismoe.training.comparison.measured import Measured
from prismoe.training.comparison.table import plot, table
from prismoe.training.comparison.train import SETTINGS, calibrate, train
from prismoe.training.pictures import Pictures

CHECKPOINT, MEASURED = "checkpoint", "measured.json"


class Comparison:
    """What is in DIR, and how it comes to be there."""

    def __init__(self, out: Path, cache: Path, steps: int) -> None:
        self.out, self.cache = out, cache
        self.settings = SETTINGS.model_copy(update={"steps": steps})
        self.pictures = Pictures(cache / "emoji")
        self.pictures.fetch()
        self.exam = build_exam(self.pictures)

    def run(self, name: str) -> None:
        """Make and measure one contender, as far as that is not done."""
        checkpoint, measured = self._checkpoint(name), self._folder(name) / MEASURED
        if not measured.exists():
            result = measure(checkpoint, self._checkpoint(BASELINE), self.exam)
            measured.write_text(result.model_dump_json(indent=1) + "\n")

    def write(self) -> None:
        """Write table and plot of what is measured, once the baseline is."""
        files = {name: self._folder(name) / MEASURED for name in CONTENDERS}
        results = {
            name: Measured.model_validate_json(file.read_text())
            for name, file in files.items()
            if file.exists()
        }
        if BASELINE in results:
            (self.out / "table.md").write_text(table(self.exam.cases, results) + "\n")
            (self.out / "accuracy.svg").write_text(plot(self.exam.cases, results))

    def _checkpoint(self, name: str) -> Path:
        checkpoint, contender = self._folder(name) / CHECKPOINT, CONTENDERS[name]
        if checkpoint.exists():
            return checkpoint
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(contender, Trained):
            train(contender, self.settings, self.pictures, self.cache / "prismoji", checkpoint)
        else:
            calibrate(contender, self._checkpoint(BASELINE), checkpoint)
        return checkpoint

    def _folder(self, name: str) -> Path:
        return self.out / name.replace(", ", "-").replace(" ", "-")


def main() -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="where checkpoints and results are kept")
    parser.add_argument(
        "--routers",
        nargs="+",
        choices=CONTENDERS,
        default=list(CONTENDERS),
        metavar="NAME",
        help="only these",
    )
    parser.add_argument(
        "--steps", type=int, default=SETTINGS.steps, help=f"of training (default: {SETTINGS.steps})"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="pictures, and the stages before experts"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    comparison = Comparison(arguments.out, arguments.cache, arguments.steps)
    for name in arguments.routers:
        comparison.run(name)
        comparison.write()


if __name__ == "__main__":
    main()
