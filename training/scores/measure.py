"""Serves checkpoints and scores them: `python -m prismoe.training.scores.measure NAME=FOLDER …`.

For each checkpoint it starts `prismoe serve` and sends every test question over HTTP. The questions are about
drawings that calibration did not use. It prints a row of Markdown for each: the share of right answers, their
number over the first checkpoint's, and the server's mean number of experts for each token.
`NAME=FOLDER:JSON` serves with that `--routing`.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismoe.training.data.cases import Exam, build_exam
from prismoe.training.data.pictures import Pictures
from prismoe.training.scores.score import Server, ask_all

START_LIMIT = STOP_LIMIT = 120  # seconds


@dataclass(frozen=True)
class Row:
    """One checkpoint's score, and its expert uses."""

    name: str
    right: int
    questions: int
    experts: Mapping[str, float]
    """The mean number of experts for each token and layer, by modality."""

    def markdown(self, first: "Row") -> str:
        """The row as Markdown."""
        share, kept = self.right / self.questions, self.right / first.right
        return (
            f"| {self.name} | {share:.1%} | {kept:.1%} | {self.experts['image']:.2f} "
            f"| {self.experts['text']:.2f} |"
        )


@contextmanager
def serving(folder: str, routing: str | None) -> Iterator[str]:
    """Run a server of the checkpoint during the block, and yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "prismoe.server.commands.cli", "serve", folder, "--host", "127.0.0.1"]
    command += ["--port", port, *([] if routing is None else ["--routing", routing])]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(STOP_LIMIT)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise RuntimeError("The server did not start: run `prismoe serve` with this checkpoint to see why.")


def measure(name: str, folder: str, routing: str | None, exam: Exam) -> Row:
    """Serve and score one checkpoint."""
    with serving(folder, routing) as url:
        server = Server(url)
        replies = ask_all(server, exam)
        time.sleep(0.5)  # The server answers with a reading that is up to half a second old.
        load = server.call("/v1/routing/load")
    right = sum(case.answer == reply.strip() for case, reply in zip(exam.cases, replies, strict=True))
    return Row(name, right, len(replies), experts_per_token(load))


def experts_per_token(load: Mapping[str, Any]) -> dict[str, float]:
    """The mean number of experts for each token and layer by modality, from `/v1/routing/load`."""
    experts = {}
    for index, modality in enumerate(load["modalities"]):
        uses = sum(sum(rows[index]) for rows in load["expert_tokens"])
        experts[modality] = uses / sum(rows[index] for rows in load["tokens"])
    return experts


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  "
        'python -m prismoe.training.scores.measure \'topk=my-checkpoint:{"policy": "topk"}\'',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="NAME=FOLDER[:JSON]",
        help="name of the row, folder of the checkpoint, and --routing to serve it with",
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="folder of the fetched pictures (default: .cache)"
    )
    arguments = parser.parse_args()
    pictures = Pictures(arguments.cache / "emoji")
    pictures.fetch()
    exam = build_exam(pictures)
    print("| router | right | of the first | experts a vision token | experts a text token |")
    print("| --- | --- | --- | --- | --- |")
    first: Row | None = None
    for checkpoint in arguments.checkpoints:
        name, _, place = checkpoint.partition("=")
        folder, _, routing = place.partition(":")
        row = measure(name, folder, routing or None, exam)
        first = first or row
        print(row.markdown(first), flush=True)


if __name__ == "__main__":
    main()
