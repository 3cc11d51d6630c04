"""The exam of single drawings as files: `python -m prismoe.training.data.exam_files FOLDER`.

They are for `prismoe evaluate --questions`.
"""

import argparse
from pathlib import Path

from prismoe.training.data.cases import Exam, build_exam
from prismoe.training.data.pictures import Pictures
from prismoe.training.data.questions import question_line

FILE = "questions.jsonl"


def write_exam(exam: Exam, folder: Path) -> None:
    """Write the drawings as PNG files, and FILE with the questions about them, to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture, png in exam.png.items():
        (folder / _name(picture)).write_bytes(png)
    lines = [question_line(_name(case.picture), case.question, case.answer) for case in exam.cases]
    (folder / FILE).write_text("".join(lines))


def _name(picture: int) -> str:
    return f"{picture}.png"


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python -m prismoe.training.data.exam_files exam",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder to write the questions and drawings to")
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="folder of the fetched pictures (default: .cache)"
    )
    arguments = parser.parse_args()
    pictures = Pictures(arguments.cache / "emoji")
    pictures.fetch()
    write_exam(build_exam(pictures), arguments.folder)


if __name__ == "__main__":
    main()
