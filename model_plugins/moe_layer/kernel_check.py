"""Checks prismoe's kernels on this GPU, which may be a kind that they were never tested on."""

import os
from collections.abc import Callable, Mapping
from enum import IntEnum

import torch
from torch.distributed import ReduceOp, all_reduce
from vllm.distributed.parallel_state import get_tp_group
from vllm.logger import init_logger

logger = init_logger("vllm.prismoe.kernels")

PLAIN_KERNELS = "PRISMOE_PLAIN_KERNELS"
"""The environment variable that turns prismoe's kernels off."""
_found: dict[str, bool] = {}


class Outcome(IntEnum):
    """The outcome of a check on a rank, the worst first."""

    BROKEN = 0
    FAILS = 1
    WORKS = 2


def kernel_works(check: Callable[[], None], name: str, instead: str) -> bool:
    """Whether `check` passes on all tensor-parallel ranks, which must all compute in the same way.

    A warning is logged where it fails. `instead` says what happens without the kernel called `name`. Raises
    RuntimeError, on all ranks, if the check leaves a rank's GPU unusable.
    """
    _found[name] = os.environ.get(PLAIN_KERNELS) != "1" and _works(check, name, instead)
    return _found[name]


def kernels_found() -> Mapping[str, bool]:
    """Whether each kernel checked in this process works, by name."""
    return _found


def _works(check: Callable[[], None], name: str, instead: str) -> bool:
    error = _error(check)
    own = Outcome.WORKS if error is None else Outcome.BROKEN if _is_broken() else Outcome.FAILS
    worst = _worst(own)
    if worst is Outcome.BROKEN:
        where, report = (
            ("this GPU", f"this error: {error}")
            if own is Outcome.BROKEN
            else ("the GPU of another rank", "that rank's error")
        )
        raise RuntimeError(
            f"prismoe's {name} broke its work on {where}. Start again with {PLAIN_KERNELS}=1 in the "
            f"environment, which does without prismoe's kernels, and please report {report}"
        ) from error
    if error is not None:
        logger.warning(
            "prismoe's %s does not work on this GPU: %s. Please report it with this error: %s",
            name,
            instead,
            error,
        )
    return worst is Outcome.WORKS


def _error(check: Callable[[], None]) -> Exception | None:
    try:
        check()
    except Exception as error:  # the compiler may raise anything, and serving works without the kernel
        return error
    return None


def _worst(own: Outcome) -> Outcome:
    """The worst outcome of all ranks. Every rank must call this: a missing one leaves the others waiting."""
    group = get_tp_group()
    if group.world_size == 1:
        return own
    answer = torch.tensor(int(own), dtype=torch.int32, device="cpu")
    all_reduce(answer, ReduceOp.MIN, group=group.cpu_group)
    return Outcome(int(answer))


def _is_broken() -> bool:
    """Whether CUDA refuses all further work of this process, as after an access to invalid memory."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
