"""Two data-parallel engines of a model with experts: tokens and the sums of their counts are transformers'.

vLLM's CPU communicator can't exchange the engines' tokens, so prismoe refuses such engines on CPU. The
functions that exchange tokens here, and the leave to start, are the test's own (`tests/cpu_exchange`). All
else is vLLM's (the engines' lockstep, the dispatch of tokens) and prismoe's (routers, counters, server).
Each engine has a part of every expert's width.
"""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from tests.model_plugins.in_tree.chats import TEXT, TWO_PICTURES, Chat, picture
from tests.model_plugins.in_tree.checkpoints import make_checkpoint
from tests.model_plugins.in_tree.reference import Answer, answers
from tests.model_plugins.in_tree.test_policies import SKIP, rule_of
from tests.paths import REPOSITORY
from tests.runners import Runner
from tests.server.in_tree import asking
from tests.server.in_tree.asking import FULL, MAX_TOKENS, VideoFile, ask, body, load, scrape, since
from tests.server.media.clips import clip
from tests.server.running import Server

pytestmark = pytest.mark.server

NAME, LAYERS = "qwen3-vl-moe", 3
VIDEO = Chat((VideoFile.of(clip(20, 10, (64, 64)), "Qwen3VLVideoProcessor"), "Which colours?"))
CHATS = (TEXT, TWO_PICTURES, VIDEO, Chat((picture(30, 128, 96), "Which picture?")))
TIMES = 3
SERVERS: dict[str, tuple[dict[str, Any] | None, Runner, tuple[str, ...]]] = {
    "native": (None, "v2", ()),
    "skip on two ranks each": (SKIP, "v1", ("--tensor-parallel-size", "2", "--routing", json.dumps(SKIP))),
}
STARTED = [*SERVERS] if os.environ.get("PRISMOE_EVERYWHERE") == "1" else ["native"]
"""The four processes of the other server take two minutes on two cores."""


class Rig(NamedTuple):
    """A server with two engines, and transformers' answers to CHATS."""

    server: Server
    answers: Sequence[Answer]

    def ask(self, chat: int, **headers: str) -> None:
        """Ask over a connection of its own; the tokens are transformers'."""
        answer = self.answers[chat]
        with asking.client(self.server) as http:
            http.headers.update(headers)
            assert ask(http, body(CHATS[chat])) == (answer.prompt_ids, answer.token_ids)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(NAME, tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module", params=STARTED)
def rig(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    routing, runner, options = SERVERS[request.param]
    rule = None if routing is None else rule_of(NAME, routing, {})
    log = tmp_path_factory.mktemp("served") / "log"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(REPOSITORY / "tests" / "cpu_exchange"), prepend=os.pathsep)
        with asking.served(
            checkpoint, log, "--data-parallel-size", "2", *FULL, *options, runner=runner
        ) as server:
            yield Rig(server, answers(checkpoint, CHATS, MAX_TOKENS, rule=rule))


@pytest.fixture
def http(rig: Rig) -> Iterator[httpx.Client]:
    with asking.client(rig.server) as client:
        yield client


def prompt_tokens(http: httpx.Client) -> np.ndarray:
    """By engine."""
    found = scrape(http, "vllm:prompt_tokens_total")
    return np.array([found[("vllm:prompt_tokens_total", engine)] for engine in ("0", "1")])


@pytest.mark.parametrize("engine", [0, 1])
def test_an_idle_engine_counts_nothing(rig: Rig, http: httpx.Client, engine: int) -> None:
    """It steps along with made-up tokens: without it the other's tokens meet a part of the experts."""
    before, tokens_before = load(http), prompt_tokens(http)
    for chat in range(len(CHATS)):
        rig.ask(chat, **{"X-data-parallel-rank": str(engine)})
    _, counted = since(before, load(http))
    np.testing.assert_array_equal(counted, np.sum([answer.counts for answer in rig.answers], axis=0))
    tokens = prompt_tokens(http) - tokens_before
    assert tokens[engine] == sum(len(answer.prompt_ids) for answer in rig.answers)
    assert tokens[1 - engine] == 0


def test_both_engines_count_what_they_are_asked_at_once(rig: Rig, http: httpx.Client) -> None:
    before, tokens_before = load(http), prompt_tokens(http)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(rig.ask, [*range(len(CHATS))] * TIMES))
    tokens_LM, counted = since(before, load(http))
    assert (tokens_LM > 0).all() and len(tokens_LM) == LAYERS
    np.testing.assert_array_equal(counted, TIMES * np.sum([answer.counts for answer in rig.answers], axis=0))
    assert (prompt_tokens(http) > tokens_before).all()


@pytest.mark.parametrize("engine", [0, 1])
def test_the_inspector_tells_the_experts_of_each_engines_tokens(
    rig: Rig, http: httpx.Client, engine: int
) -> None:
    http.headers["X-data-parallel-rank"] = str(engine)
    told = http.post("/v1/routing/inspect", json=body(TWO_PICTURES)).raise_for_status().json()
    answer = rig.answers[CHATS.index(TWO_PICTURES)]
    for layer, experts_TK in zip(told["routing"]["layers"], answer.experts_LTK, strict=True):
        for mine, theirs in zip(layer["experts"], experts_TK, strict=True):
            assert sorted(mine) == sorted(theirs[theirs >= 0])
