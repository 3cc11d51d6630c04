"""Bounds on a connection: how long its client may take to send a header and to read, how large a header is.

They are timers of the connection, so that an answer's pieces cost nothing more.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from prismoe.server.limits.settings import LimitSettings

MOST_HEADER_BYTES = 64 * 1024
LINGER_S = 5
"""How long the rest of a refused request's body is read and thrown away, so that the refusal arrives."""

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection, with an end to every wait for the client."""

    def __init__(self, limits: LimitSettings, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._limits = limits
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._in_header, self._in_body = True, False
        self._header_bytes = 0
        self._got_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a header, unless there are too many connections."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            transport.abort()
        else:
            self._end_reading_in(self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._end_reading_in(None)
        self._end_writing_in(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, and go on waiting where it was no whole header.

        What is no body (the next request's header, trailers behind a body) counts as a header's.
        """
        self._got_body = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._header_bytes = 0 if self._got_body else self._header_bytes + len(data)
        if self._header_bytes > MOST_HEADER_BYTES:
            if self._in_header:
                self.transport.write(TOO_LARGE)
                self.transport.close()
            else:
                self.transport.abort()
        elif self._in_header and self._reading is None:
            self._end_reading_in(self._limits.header_seconds)

    def on_headers_complete(self) -> None:
        """A request begins; its body has a limit of its own (`BodyLimit`)."""
        self._end_reading_in(None)
        self._in_header, self._in_body = False, True
        self._header_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._got_body = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is there."""
        self._in_body = False
        if self.cycle.response_complete:  # It was refused before.
            self._await_header(self.timeout_keep_alive)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is sent; what comes is another request, or the rest of a body that was refused."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_writing_in(self._limits.write_seconds)
        elif not self.cycle.response_complete:
            return  # The next request is under way.
        elif self._in_body:
            self._end_reading_in(LINGER_S)
        else:
            self._await_header(None)

    def pause_writing(self) -> None:
        """The client reads slower than the answer comes."""
        super().pause_writing()
        self._end_writing_in(self._limits.write_seconds)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._end_writing_in(None)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if its client has not read its answer."""
        super().timeout_keep_alive_handler()
        self._end_writing_in(self._limits.write_seconds)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: a client that would rather speak something else is answered in HTTP."""

    def _await_header(self, seconds: float | None) -> None:
        self._in_header = True
        self._end_reading_in(seconds)

    def _end_reading_in(self, seconds: float | None) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._reading = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def _end_writing_in(self, seconds: float | None) -> None:
        if self._writing is not None:
            self._writing.cancel()
        self._writing = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)
