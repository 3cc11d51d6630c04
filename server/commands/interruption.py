"""Handles Ctrl-C and SIGTERM during the start: the command ends at once, silently, with all its processes."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


@contextlib.contextmanager
def silent_imports() -> Iterator[None]:
    """Make signals end the process at once during this block. Imported code could catch an exception."""

    def leave(signal_number: int, frame: FrameType | None) -> NoReturn:
        os._exit(128 + signal_number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StartSignals:
    """Ends this process and its engines if a signal comes during the start.

    A terminal sends Ctrl-C to all processes of a server, and those that are still importing would print a
    traceback. So SIGINT is blocked in this process, and the processes that it starts inherit that. A thread
    waits for SIGINT and sends SIGTERM to this process instead, which then ends the other processes.
    """

    def __init__(self) -> None:
        self._status = 128 + signal.SIGTERM
        self._ending = False

    def take(self) -> None:
        """Make signals end the process, until another handler for SIGTERM is set."""
        from multiprocessing import resource_tracker

        # The tracker removes the resources of killed engines, and would warn about them.
        sys.warnoptions.append("ignore:resource_tracker:UserWarning")
        resource_tracker.ensure_running()  # A later start of the tracker would unblock SIGINT.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        signal.signal(signal.SIGTERM, self._end)
        threading.Thread(target=self._pass_on, name="signals", daemon=True).start()

    def _pass_on(self) -> NoReturn:
        while True:
            signal.sigwait((signal.SIGINT,))
            self._status = 128 + signal.SIGINT
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _end(self, signal_number: int, frame: FrameType | None) -> NoReturn:
        from multiprocessing import active_children

        engines = active_children()
        if self._ending or not engines:
            os._exit(self._status)
        self._ending = True
        for engine in engines:
            _kill_family(engine.pid)
        raise SystemExit(self._status)  # With this exception vLLM removes the engines' resources.


def _kill_family(process_id: int | None) -> None:
    """Kill a process and all its descendants."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(process_id)
        process.suspend()  # A suspended process starts no more children.
        for member in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
