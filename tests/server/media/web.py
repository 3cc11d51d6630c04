"""Web servers on loopback addresses that count connections, and a DNS with the test's answers."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[BaseHTTPRequestHandler], None]


class Counted(ThreadingHTTPServer):
    """Answers by path, and counts connections, with or without a request."""

    def __init__(self, address: str, port: int = 0, behaviours: dict[str, Behaviour] | None = None) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.behaviours = behaviours or {}
        self.hits = 0
        self.headers: list[dict[str, str]] = []
        super().__init__((address, port), Handler)

    def get_request(self) -> Any:
        self.hits += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that leave during an answer, as they should here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Counted

    def do_GET(self) -> None:
        self.server.headers.append({key.lower(): value for key, value in self.headers.items()})
        self.server.behaviours[self.path.partition("?")[0]](self)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def running(*servers: Counted) -> Iterator[None]:
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def answer(body: bytes, status: int = 200, **headers: str) -> Behaviour:
    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Send a byte every tenth of a second."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b"x")
        time.sleep(0.1)


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Send an endless answer without a length."""
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(65536))


class Names:
    """Replaces `socket.getaddrinfo`: the n-th query for a name gets its n-th answer, and later ones the last.

    Other names go to the system's resolver, which knows the numeric forms.
    """

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {name.replace("_", "."): list(each) for name, each in answers.items()}
        self._system = socket.getaddrinfo
        self.questions = 0

    def __call__(self, host: Any, port: Any, *args: Any, **options: Any) -> list[Any]:
        if host not in self._answers:
            return self._system(host, port, *args, **options)
        self.questions += 1
        answers = self._answers[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [info for address in addresses for info in self._system(address, port, *args, **options)]
