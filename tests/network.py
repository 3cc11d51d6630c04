"""The machine's network: some tests change it, and others need it unchanged."""

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = Path(tempfile.gettempdir()) / "prismoe-tests-network.lock"


@contextmanager
def network(*, changes: bool) -> Iterator[None]:
    """Wait until no other pytest process changes the network. One that changes it waits for all others.

    Docker adds an interface for each container, and Chromium drops all its requests when one comes or goes
    ("net::ERR_NETWORK_CHANGED").
    """
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if changes else fcntl.LOCK_SH)
        yield
