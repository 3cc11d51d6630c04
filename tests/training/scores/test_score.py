"""The scorer asks a server like any OpenAI client, and the rule for `SET_ASIDE` is right."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prismoe.training.data.agreement import agreement
from prismoe.training.data.cases import Case, Exam
from prismoe.training.data.concepts import CANDIDATES
from prismoe.training.data.questions import TEMPLATES
from prismoe.training.scores.measured import CheckpointScores, Score
from prismoe.training.scores.score import Server, ask_all
from tests.training.test_recipe import MadeUpPictures


class Echo(BaseHTTPRequestHandler):
    """Answers with the picture's bytes and the question of the request."""

    def do_GET(self) -> None:
        self._send({"data": [{"id": "echo"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        picture, text = body["messages"][0]["content"]
        png = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,")).decode()
        assert (body["model"], body["temperature"]) == ("echo", 0)
        label = "".join(f" as {key} {value}" for key, value in body.get("vllm_xargs", {}).items())
        self._send({"choices": [{"message": {"content": f" {png}: {text['text']}{label}"}}]})

    def _send(self, reply: dict[str, Any]) -> None:
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_answers_come_back_in_order(url: str) -> None:
    cases = [Case("s", number % 3, "name", f"What is {number}?", "", ()) for number in range(20)]
    exam = Exam(cases, {number: f"picture {number}".encode() for number in range(3)})
    expected = [f" picture {number % 3}: What is {number}?" for number in range(20)]
    assert ask_all(Server(url), exam) == expected


def test_a_question_has_its_task_if_the_router_needs_it(url: str) -> None:
    cases = [Case("s", 0, topic, "?", "", ()) for topic in TEMPLATES]
    exam = Exam(cases, {0: b"picture"})
    replies = ask_all(Server(url), exam, with_tasks=True)
    assert replies == [f" picture: ? as task {task}" for task in range(len(TEMPLATES))]


def test_only_topics_that_work_on_every_split_are_advertised() -> None:
    def scored(split: str, right: float) -> list[Score]:
        return [Score(split=split, topic="name", questions=9, right=right, majority=0.5)]

    measured = CheckpointScores(
        parameters=1, moe_layers=[], stages=[], routing_before=[], routing=[], scored="offline", scores=[]
    )
    good = measured.model_copy(update={"scores": scored("a", 0.9) + scored("b", 0.8)})
    weak = measured.model_copy(update={"scores": scored("a", 0.9) + scored("b", 0.7)})
    assert "name" in good.advertised() and "name" not in weak.advertised()


@pytest.mark.slow
def test_agreement_is_a_share_for_every_candidate(tmp_path: Path) -> None:
    emoji = [candidate.emoji[0] for candidate in CANDIDATES[:4]]
    shares = agreement(MadeUpPictures(tmp_path, emoji))
    assert list(shares) == [candidate.name for candidate in CANDIDATES]
    assert all(0 <= shares[candidate.name] <= 1 for candidate in CANDIDATES[:4])
