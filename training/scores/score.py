"""Scores a running server: `python -m prismoe.training.scores.score --url http://127.0.0.1:8000`.

It sends the questions of both exams to the OpenAI chat endpoint and prints a table. With `--write` it also
writes the scores into the checkpoint's `measured.json` and model card.
"""

import argparse
import base64
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prismoe.training.data.cases import Case, Exam, build_exam, score
from prismoe.training.data.pictures import Pictures
from prismoe.training.data.questions import TASKS
from prismoe.training.data.scene_exam import build_scene_exam
from prismoe.training.scores.card import write_card
from prismoe.training.scores.evaluate import ANSWER_LIMIT
from prismoe.training.scores.measured import CheckpointScores

CONCURRENCY = 8
TIMEOUT = 120  # seconds


class Server:
    """An OpenAI chat endpoint."""

    def __init__(self, url: str) -> None:
        """Use the first model that `url` serves."""
        self.url = url.rstrip("/")
        self.model: str = self.call("/v1/models")["data"][0]["id"]

    def answer(self, png: bytes, question: str, task: int | None = None) -> str:
        """The greedy answer to a question about a picture. The request can have a task label."""
        picture = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        image = {"type": "image_url", "image_url": {"url": picture}}
        return self.ask([image, {"type": "text", "text": question}], ANSWER_LIMIT, task)

    def ask(self, content: list[dict[str, Any]], max_tokens: int, task: int | None = None) -> str:
        """The greedy answer to a user's message of texts and pictures."""
        label = {} if task is None else {"vllm_xargs": {"task": task}}
        reply = self.call(
            "/v1/chat/completions",
            {
                "model": self.model,
                "messages": [{"role": "user", "content": content}],
                "temperature": 0,
                "max_tokens": max_tokens,
                **label,
            },
        )
        return str(reply["choices"][0]["message"]["content"])

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON at `path`; `body` is posted there."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            return json.load(response)


def ask_all(server: Server, exam: Exam, with_tasks: bool = False) -> list[str]:
    """The server's answers in the order of the cases. `with_tasks` sends each question's task label."""

    def answer(case: Case) -> str:
        return server.answer(exam.png[case.picture], case.question, TASKS[case.topic] if with_tasks else None)

    with ThreadPoolExecutor(CONCURRENCY) as workers:
        replies = workers.map(answer, exam.cases)
        return list(tqdm(replies, total=len(exam.cases), desc="ask"))


def main() -> None:
    """Parse the command line and score."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python -m prismoe.training.scores.score --url http://127.0.0.1:8000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="URL of the server (default: %(default)s)"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="folder of the fetched pictures (default: .cache)"
    )
    parser.add_argument(
        "--write", type=Path, help="folder of a checkpoint whose scores and model card to rewrite"
    )
    arguments = parser.parse_args()
    pictures = Pictures(arguments.cache / "emoji")
    pictures.fetch()
    server = Server(arguments.url)
    scores, old_scores = (
        score(exam.cases, ask_all(server, exam))
        for exam in (build_scene_exam(pictures), build_exam(pictures))
    )
    for row in scores + old_scores:
        print(
            f"{row.split:18} {row.look:6} {row.topic:20} {row.questions:4} {row.right:7.1%} ± "
            f"{row.error:.1%} (commonest answer {row.majority:.1%})"
        )
    if arguments.write:
        measured = CheckpointScores.read(arguments.write)
        update = {"scores": scores, "old_scores": old_scores, "scored": "served"}
        measured.model_copy(update=update).write(arguments.write)
        write_card(arguments.write)


if __name__ == "__main__":
    main()
