"""Starts servers on this machine for a measurement."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from prismoe.loadtests.scenarios import MOST_IMAGES

START_LIMIT_S = 300
CHECKPOINT = Path(__file__).parents[1] / "model_plugins" / "checkpoints" / "prismoji"
"""The bundled model's folder. The server does not report it to clients."""
OPTIONS = (
    *("--expert-metrics", "full"),
    *("--expert-load-interval", "0.5"),
    *("--limit-mm-per-prompt", f'{{"image": {MOST_IMAGES}}}'),
)


@contextmanager
def local_server(log: Path) -> Iterator[tuple[str, int]]:
    """Start a server of the bundled model; yield its URL and process id. Raises RuntimeError if it fails."""
    with serving("prismoe.server.commands.cli", ["serve", *OPTIONS], log) as server:
        yield server


@contextmanager
def serving(
    module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, int]]:
    """Run a Python module that serves HTTP during the block, and yield its URL and process id."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-P", "-m", module, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with running(command, log, environment) as process:
        if not gets_healthy(process, url):
            raise RuntimeError(f"The server did not become ready. Read its log: {log}")
        yield url, process.pid


@contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in its own process group, and end it with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A process group, not a session: Linux schedules sessions separately, and the engine's busy
            # loops would starve other processes.
            process_group=0,
            env=os.environ | dict(environment or {}),
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port of this host on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def gets_healthy(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until a server answers. Returns False if it ends or takes too long."""
    end = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False
