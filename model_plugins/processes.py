"""The engine's processes end with the one that started them, even if that is killed or they are stuck."""

import ctypes
import multiprocessing
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Have Linux kill this process when its parent is gone, if it is a process of multiprocessing's."""
    if sys.platform == "linux" and multiprocessing.parent_process() is not None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
