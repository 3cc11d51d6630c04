"""Ends the engine's processes with the process that started them, even if that is killed or they hang.

This happens only on request: Linux treats the end of the *thread* that started a process as its parent's end,
so an engine started in a short-lived thread would end with that thread.
"""

import ctypes
import os
import signal
import sys
from multiprocessing import parent_process

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ASKED = "PRISMOE_END_WITH_PARENT"


def ask_to_end_with_parent() -> None:
    """Make the engine's processes end with this one, if a thread that lives as long starts them."""
    os.environ[ASKED] = "1"


def end_with_parent_if_asked() -> None:
    """End this process with its parent, if that asked for it and this is a process of an engine."""
    parent = parent_process()
    if ASKED in os.environ and parent is not None and parent.pid is not None:
        _end_with(parent.pid)


def end_forks_with_parent() -> None:
    """Make processes that are forked from this one from now on end with it."""
    forking = 0

    def before_fork() -> None:
        nonlocal forking
        forking = os.getpid()

    os.register_at_fork(before=before_fork, after_in_child=lambda: _end_with(forking))


def _end_with(parent: int) -> None:
    """Let Linux kill this process when its parent ends; kill it now if the parent has already ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It ended before prctl, so Linux sends no signal.
            os.kill(os.getpid(), signal.SIGKILL)
