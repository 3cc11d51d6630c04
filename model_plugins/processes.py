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
    if ASKED in os.environ and parent_process() is not None:
        end_with_parent()


def end_with_parent() -> None:
    """Have Linux kill this process when the one that started it is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
