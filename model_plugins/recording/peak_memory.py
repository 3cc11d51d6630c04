"""Measures the peak memory of a process, on the host and on its GPU."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import torch


class PeakMemory(NamedTuple):
    """A process id, and its peak memory in bytes since `begin`."""

    process: int
    host: int
    device: int


def begin() -> None:
    """Reset the peak (Linux's clear_refs, proc_pid_clear_refs(5))."""
    Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak() -> PeakMemory:
    """The peak memory of this process. VmHWM is the peak resident memory."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux gives VmHWM"
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return PeakMemory(os.getpid(), int(found[1]) * 1024, device)
