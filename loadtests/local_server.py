"""Servers of this machine, for as long as a measurement takes."""

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
"""The bundled model's folder, which its server does not tell."""
OPTIONS = (
    *("--expert-metrics", "full"),
    *("--expert-load-interval", "0.5"),
    *("--limit-mm-per-prompt", f'{{"image": {MOST_IMAGES}}}'),
)


@contextmanager
def local_server(log: Path) -> Iterator[tuple[str, int]]:
    """The URL and process id of a server of the bundled model. Raises RuntimeError where it fails."""
    with serving("prismoe.server.commands.cli", ["serve", *OPTIONS], log) as server:
        yield server


@contextmanager
def serving(
    module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, int]]:
    """The URL and process id of a Python module that serves HTTP, as long as the block lasts."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-P", "-m", module, *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with running(command, log, environment) as process:
        if not gets_healthy(process, url):
            raise RuntimeError(f"The server did not get ready. Its log is {log}")
        yield url, process.pid


@contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process group of its own, as long as the block lasts."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Not a session: Linux schedules sessions apart, and the engine's busy loops starve others.
            process_group=0,
            env=os.environ | dict(environment or {}),
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port of this host that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def gets_healthy(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait until a server answers; False where it ends, or takes too long."""
    end = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False
