"""The engine's processes end with the one that started them, even if that is killed or they are stuck.

Only where that one asks for it: Linux takes the end of the *thread* that started a process for its parent's,
so an engine that a program starts in a thread of its own would end with that thread.
"""

import ctypes
import os
import signal
import sys
from multiprocessing import parent_process

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ASKED = "PRISMOE_END_WITH_PARENT"


def ask_to_end_with_parent() -> None:
    """From now on the engine's processes that this one starts, from a thread that stays, end with it."""
    os.environ[ASKED] = "1"


def end_with_parent_if_asked() -> None:
    """Do so if this is a process of an engine, not the one that asked, which a shell may have started."""
    parent = parent_process()
    if ASKED in os.environ and parent is not None and parent.pid is not None:
        _end_with(parent.pid)


def end_forks_with_parent() -> None:
    """From now on processes that are forked from this one end with it."""
    forking = 0

    def before_fork() -> None:
        nonlocal forking
        forking = os.getpid()

    os.register_at_fork(before=before_fork, after_in_child=lambda: _end_with(forking))


def _end_with(parent: int) -> None:
    """Have Linux kill this process when `parent`, which started it, is gone: at once if it is already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It ended before Linux was asked, which then tells nothing.
            os.kill(os.getpid(), signal.SIGKILL)
