"""Made-up checks for CPU, one for each way in which a check can end."""

import os
import signal
import time

from prismoe.benchmarks.gpu_check.check import Check, Figures, Host, Skip


def works(host: Host) -> Figures:
    return {"device": host.device, "said": os.environ["SAID"], "third": 1 / 3}


def fails(_: Host) -> Figures:
    raise AssertionError("\nExperts differ.\nHere is more.")


def dies(_: Host) -> Figures:
    print("Last words.", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def skips(_: Host) -> Figures:
    raise Skip("There is nothing to do.")


def hangs(_: Host) -> Figures:
    time.sleep(600)
    return {}


CHECKS = [
    Check("works", 30, works, environment={"SAID": "hello"}),
    Check("fails", 30, fails),
    Check("dies: at once", 30, dies),
    Check("skips", 30, skips),
    Check("on a GPU", 30, works, needs_gpu=True),
    Check("hangs", 1, hangs),
]
