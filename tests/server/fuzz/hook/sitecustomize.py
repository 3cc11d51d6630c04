"""Python runs this first in each process of a watched server. It records what the process accesses.

A line of the file is a process id, an audit event and its argument. On SIGNAL, a process accesses the
tripwires, so that a test knows that it is watched.
"""

import os
import signal
import socket
import sys
from pathlib import Path

EVENTS, CANARY, PORT, SIGNAL = (
    os.environ[f"PRISMOE_TEST_{name}"] for name in ("EVENTS", "CANARY", "PORT", "SIGNAL")
)


def note(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        about = arguments[1]
    elif event == "socket.getaddrinfo" or (event == "open" and str(arguments[0]).endswith(CANARY)):
        about = arguments[0]
    else:
        return
    file = os.open(EVENTS, os.O_WRONLY | os.O_APPEND)
    os.write(file, f"{os.getpid()} {event} {about!r}\n".encode(errors="backslashreplace"))
    os.close(file)


def reach(*_: object) -> None:
    Path(CANARY).read_bytes()
    socket.create_connection(("127.0.0.1", int(PORT)), 5).close()


sys.addaudithook(note)
signal.signal(int(SIGNAL), reach)
