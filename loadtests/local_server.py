"""`prismoe serve` with the bundled model, for as long as a load test takes."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prismoe.loadtests.scenarios import MOST_IMAGES

START_LIMIT_S = 300
OPTIONS = (
    *("--expert-metrics", "full"),
    *("--expert-load-interval", "0.5"),
    *("--limit-mm-per-prompt", f'{{"image": {MOST_IMAGES}}}'),
)


@contextmanager
def local_server(log: Path, options: Sequence[str] = OPTIONS) -> Iterator[tuple[str, int]]:
    """Its URL and process id. Raises RuntimeError where it does not get ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-P", "-m", "prismoe.server.cli", "serve", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"The server did not get ready. Its log is {log}")
