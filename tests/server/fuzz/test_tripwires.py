"""The server accesses nothing that a request names: the tripwires work, and no part trips them."""

import json
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest

from tests.server.fuzz.faults import Findings, Watched
from tests.server.fuzz.grammar import MEDIA, MODEL
from tests.server.fuzz.processes import processes
from tests.server.fuzz.tripwires import SIGNAL, Tripwires, catches_signal

LIMIT_S = 20

PATHS = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/tokenize",
    "/v1/routing/inspect",
)
"""The routes that accept parts."""

TEXT = {"type": "text", "text": "What is this?"}


def test_the_tripwires_work_in_every_process(watched: Watched) -> None:
    family = processes(watched.server)
    assert len(family) >= 3  # the server, its engine, a worker
    watched.wires.reached()
    for process in family:
        assert catches_signal(process), process
        process.send_signal(SIGNAL)
        expected = {"listener", "inotify", f"{process.pid} open", f"{process.pid} socket.connect"}
        end, seen = time.monotonic() + LIMIT_S, set[str]()
        while not expected <= seen:
            assert time.monotonic() < end, (process, seen)
            time.sleep(0.05)
            seen.update(" ".join(event.split()[:2]) for event in watched.wires.reached())


@pytest.mark.parametrize("path", PATHS)
def test_no_part_makes_the_server_access_what_it_names(watched: Watched, path: str) -> None:
    """A part is tried in each of its forms, before and after text, since vLLM parses parts one by one."""
    findings = Findings(watched)
    for content in contents(watched.wires):
        findings.ask(path, json.dumps(body(path, content)).encode())
    findings.check()


def contents(wires: Tripwires) -> Iterator[list[Any]]:
    """The contents of a user's message with a lure in a part of each kind of media."""
    urls, files = cycle(wires.urls), cycle(wires.paths)
    for kind in MEDIA:
        yield [{"type": kind, kind: next(urls)}, TEXT]
        yield [{"type": kind, kind: next(files)}, TEXT]
        yield [TEXT, {"type": kind, kind: next(urls)}]
        yield [{kind: next(files)}, TEXT]
        yield [{"type": kind, kind: {"url": next(urls)}}, TEXT]
        yield [{"type": kind, kind: {"data": next(files), "format": "wav"}}, TEXT]
        yield [{"type": kind, "source": {"type": "url", "url": next(urls)}}, TEXT]


def body(path: str, content: list[Any]) -> Any:
    """A request with one message with this content."""
    messages: list[Any] = [{"role": "user", "content": content}]
    match path:
        case "/v1/responses":
            return {"model": MODEL, "max_output_tokens": 1, "input": messages}
        case "/v1/chat/completions/batch":
            return {"model": MODEL, "max_tokens": 1, "messages": [messages]}
    return {"model": MODEL, "max_tokens": 1, "messages": messages}
