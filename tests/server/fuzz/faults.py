"""The possible faults of a server's reaction to a request."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx

from tests.server.fuzz.tripwires import Tripwires
from tests.server.log_lines import LogLines
from tests.server.running import Server

INNER_ERROR = re.compile(r'"code": ?5\d\d')
"""The form of an error in a stream that has begun."""

NO_SENTENCE = re.compile(
    r"Traceback|NoneType|object has no attribute|object is not|input_value|\[type=|'loc':|'msg':"
    r"|validation error|got multiple values|keyword argument|0x[0-9a-f]{6}|<class|errors\.pydantic"
)
"""Phrases of Python, Jinja and pydantic that are not meant for users."""


class Watched(NamedTuple):
    """A server, and the watch on it."""

    server: Server
    http: httpx.Client
    wires: Tripwires
    log: LogLines


@dataclass
class Findings:
    """The faults that were found: the shortest body for each kind."""

    watched: Watched
    asked: int = 0
    bodies: dict[tuple[str, str], tuple[bytes, str]] = field(default_factory=dict)

    def ask(self, path: str, body: bytes) -> int:
        """Send a request and record faults; return the answer's status."""
        self.asked += 1
        request_id = f"case-{id(self)}-{self.asked}"
        answer = self.watched.http.post(path, content=body, headers={"X-Request-Id": request_id})
        for kind, details in _faults(answer, self.watched.log.of(request_id), self.watched.wires):
            known = self.bodies.get((path, kind))
            if known is None or len(body) < len(known[0]):
                self.bodies[path, kind] = body, details
        return answer.status_code

    def check(self) -> None:
        """Fail with all faults."""
        found = [
            f"{path}: {kind}\n  {body!r}\n  {reported}"
            for (path, kind), (body, reported) in self.bodies.items()
        ]
        assert not found, "\n" + "\n".join(found)


def _faults(answer: httpx.Response, log: list[str], wires: Tripwires) -> Iterator[tuple[str, str]]:
    """The faults of an answer and of the request's effects: the kind, and details."""
    if answer.status_code >= 500 or INNER_ERROR.search(answer.text):
        yield f"status {answer.status_code}", answer.text[:300]
    if answer.status_code >= 400 and not _has_sentence(answer):
        yield "no sentence", answer.text[:300]
    if len(log) != 1:
        yield "more than a line in the log", "\n  ".join(log[:3] + log[-3:])
    if str(wires.canary.parent) in "".join(log):
        yield "the client's text in the log", "".join(log)[:300]
    if reached := wires.reached():
        yield "reached for a tripwire", str(reached)


def _has_sentence(answer: httpx.Response) -> bool:
    """Whether an error has the API's form and a message that is a sentence."""
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, TypeError, KeyError):
        return False
    return isinstance(message, str) and message.count(" ") >= 2 and not NO_SENTENCE.search(message)
