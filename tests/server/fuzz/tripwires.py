"""A file and a web server that no request may reach, and a record of accesses."""

import ctypes
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.server.media.web import Counted, answer, running

HOOK = Path(__file__).parent / "hook"
SIGNAL = signal.SIGRTMIN + 7
"""A signal that makes a watched process access the tripwires."""

IN_ACCESS, IN_OPEN = 0x1, 0x20
INOTIFY_EVENT = struct.Struct("iIII")
VARIANTS = 30
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Tripwires:
    """The canary is a picture in a file, and the listener serves it."""

    def __init__(self, folder: Path, picture: bytes) -> None:
        self.canary = folder / "canary.png"
        self.canary.write_bytes(picture)
        self.listener = Counted("127.0.0.1", behaviours={"/canary.png": answer(picture)})
        self.port = self.listener.server_port
        self._events = folder / "events"
        self._events.touch()
        self.inotify = _watch(self.canary)
        self._hits = self._read = 0

    @property
    def urls(self) -> list[str]:
        """Addresses of the listener. vLLM's cache treats all of them as different."""
        hosts = ("127.0.0.1", "localhost", "127.1", "2130706433", "[::ffff:127.0.0.1]", "canary.invalid")
        schemes = ("https", "HTTP", "ftp", "ws")
        servers = [*(f"http://{host}" for host in hosts), *(f"{scheme}://127.0.0.1" for scheme in schemes)]
        return [f"{url}:{self.port}/canary.png?{number}" for number in range(VARIANTS) for url in servers]

    @property
    def paths(self) -> list[str]:
        """As many names of the canary."""
        folder, starts = self.canary.parent, ("", "file://", "file:", "FILE://localhost", "/proc/self/root")
        return [f"{each}{folder}/{'./' * number}canary.png" for number in range(VARIANTS) for each in starts]

    @property
    def environment(self) -> dict[str, str]:
        """The environment that makes a server's processes record their accesses."""
        named = {"EVENTS": self._events, "CANARY": self.canary, "PORT": self.port, "SIGNAL": int(SIGNAL)}
        path = os.pathsep.join([str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {f"PRISMOE_TEST_{name}": str(value) for name, value in named.items()} | {"PYTHONPATH": path}

    def reached(self) -> list[str]:
        """The accesses since the last call, with the process or the way in which they were detected."""
        hits, self._hits = self.listener.hits - self._hits, self.listener.hits
        noted = self._events.read_text(errors="replace").splitlines()
        new, self._read = noted[self._read :], len(noted)
        return ["listener"] * hits + self._opened() + [event for event in new if not self._is_own(event)]

    def _opened(self) -> list[str]:
        """The number of times that anyone opened or read the canary."""
        try:
            return ["inotify"] * (len(os.read(self.inotify, 2**16)) // INOTIFY_EVENT.size)
        except BlockingIOError:
            return []

    def _is_own(self, event: str) -> bool:
        """Whether a recorded event is between a server's own processes."""
        _, kind, about = event.split(" ", 2)
        if kind == "open" or str(self.port) in about:
            return False
        is_path = kind == "socket.connect" and not about.startswith("(")
        return is_path or any(repr(host) in about for host in LOOPBACK)


@contextmanager
def tripwires(folder: Path, picture: bytes) -> Iterator[Tripwires]:
    """Working tripwires."""
    wires = Tripwires(folder, picture)
    try:
        with running(wires.listener):
            yield wires
    finally:
        os.close(wires.inotify)


def catches_signal(process: psutil.Process) -> bool:
    """Whether a process has a handler for SIGNAL. Without one, the signal would end it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask, 16) >> (SIGNAL - 1) & 1)


def _watch(file: Path) -> int:
    """An inotify descriptor that reports when the file is opened or read."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(file), IN_OPEN | IN_ACCESS) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    return int(descriptor)
