"""Ctrl-C and SIGTERM before the server serves: the command ends at once, silently, with all its processes."""

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
    """In this block a signal ends the process at once: an exception could be lost in what is imported."""

    def leave(signal_number: int, frame: FrameType | None) -> NoReturn:
        os._exit(128 + signal_number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StartSignals:
    """Ends a start that is under way when this process is told to end.

    A terminal sends Ctrl-C to all processes of a server, and those that are still importing would print a
    traceback. So SIGINT is blocked in this one, and with it in those that it starts, which it ends itself:
    a thread waits for SIGINT and sends this process SIGTERM instead.
    """

    def __init__(self) -> None:
        self._status = 128 + signal.SIGTERM
        self._ending = False

    def take(self) -> None:
        """From now on signals end the process, until `signal.signal` or an event loop takes SIGTERM over."""
        from multiprocessing import resource_tracker

        # It removes what engines that are killed leave, and would warn of that.
        sys.warnoptions.append("ignore:resource_tracker:UserWarning")
        resource_tracker.ensure_running()  # Where a later call starts it, that unblocks SIGINT.
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
        raise SystemExit(self._status)  # vLLM removes what the engines left.


def _kill_family(process_id: int | None) -> None:
    """Kill a process and all that descend from it."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(process_id)
        process.suspend()  # It starts no more.
        for member in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
