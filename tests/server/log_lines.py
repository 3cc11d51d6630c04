"""A running server's log lines for a request."""

import time

from tests.server.running import Server

LIMIT_S = 10
OTHERS = ("[loggers.py:", "Anthropic thinking.type=disabled maps to", " request method=")
"""Texts in lines that belong to no request (the server's load, vLLM's one-time messages) or to others."""


class LogLines:
    """The lines from now on."""

    def __init__(self, server: Server) -> None:
        self._file = server.log.open(errors="replace")
        self._file.seek(0, 2)
        self._rest = ""

    def of(self, request_id: str) -> list[str]:
        """The lines up to the request's own, without those of other requests."""
        own = f"request_id={request_id}"
        end, lines = time.monotonic() + LIMIT_S, list[str]()
        while not any("INFO" in line and own in line for line in lines):
            assert time.monotonic() < end, f"No line has {own}."
            lines += self._new()
            time.sleep(0.001)
        return [line for line in lines if own in line or not _is_others(line)]

    def _new(self) -> list[str]:
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        return lines


def _is_others(line: str) -> bool:
    return not line or any(mark in line for mark in OTHERS)
