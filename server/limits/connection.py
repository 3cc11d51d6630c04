"""The limits on a connection: the time to send a header, the time to read an answer, and a header's size.

The time limits are timers of the connection, so that they cost nothing for each piece of an answer.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from prismoe.server.limits.settings import LimitSettings

MAX_HEADER_BYTES = 64 * 1024
LINGER_S = 5
"""How long the server discards the rest of a refused request's body, so that the refusal arrives."""

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection, with a time limit on every wait for the client."""

    def __init__(self, limits: LimitSettings, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._limits = limits
        self._read_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._in_header, self._in_body = True, False
        self._header_bytes = 0
        self._got_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit for the header, or close the connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            transport.abort()
        else:
            self._limit_read(self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self._limit_read(None)
        self._limit_write(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, limit a header's size, and start the time limit for the rest of a header.

        All data outside a body (the next request's header, trailers after a body) count as part of a header.
        """
        self._got_body = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._header_bytes = 0 if self._got_body else self._header_bytes + len(data)
        if self._header_bytes > MAX_HEADER_BYTES:
            if self._in_header:
                self.transport.write(TOO_LARGE)
                self.transport.close()
            else:
                self.transport.abort()
        elif self._in_header and self._read_timer is None:
            self._limit_read(self._limits.header_seconds)

    def on_headers_complete(self) -> None:
        """End the time limit for the header. The body has its own time limit (`BodyLimit`)."""
        self._limit_read(None)
        self._in_header, self._in_body = False, True
        self._header_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Note that the data hold a piece of a body."""
        self._got_body = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of the body. If the request was refused before, wait for the next header."""
        self._in_body = False
        if self.cycle.response_complete:
            self._await_header(self.timeout_keep_alive)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Limit the wait for what follows the answer: another request, or the rest of a refused body."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._limit_write(self._limits.write_seconds)
        elif not self.cycle.response_complete:
            return  # The next request runs already.
        elif self._in_body:
            self._limit_read(LINGER_S)
        else:
            self._await_header(None)

    def pause_writing(self) -> None:
        """Start the time limit for reading: the client reads slower than the server writes."""
        super().pause_writing()
        self._limit_write(self._limits.write_seconds)

    def resume_writing(self) -> None:
        """End the time limit for reading: the client has read the data."""
        super().resume_writing()
        self._limit_write(None)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if its client has not read its answer."""
        super().timeout_keep_alive_handler()
        self._limit_write(self._limits.write_seconds)

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing. A client that asks for another protocol gets an HTTP answer."""

    def _await_header(self, seconds: float | None) -> None:
        self._in_header = True
        self._limit_read(seconds)

    def _limit_read(self, seconds: float | None) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._read_timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def _limit_write(self, seconds: float | None) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
        self._write_timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)
