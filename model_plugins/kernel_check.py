"""Whether a kernel of prismoe's does its work on this GPU, which may not be one that it was tried on."""

import os
from collections.abc import Callable

import torch
from torch.distributed import ReduceOp, all_reduce
from vllm.distributed.parallel_state import get_tp_group
from vllm.logger import init_logger

logger = init_logger("vllm.prismoe.kernels")

PLAIN_KERNELS = "PRISMOE_PLAIN_KERNELS"
"""The environment variable that turns them off."""


def kernel_works(check: Callable[[], None], name: str, instead: str) -> bool:
    """Whether `check` passes on all tensor-parallel ranks, which must compute alike; a warning tells if not.

    `instead` says what happens without the kernel called `name`. Raises RuntimeError with a sentence if the
    check leaves a GPU that nothing can run on.
    """
    if os.environ.get(PLAIN_KERNELS) == "1":
        return False
    works = _passes(check, name, instead)
    group = get_tp_group()
    if group.world_size > 1:
        answer = torch.tensor(int(works), dtype=torch.int32, device="cpu")
        all_reduce(answer, ReduceOp.MIN, group=group.cpu_group)
        works = bool(answer)
    return works


def _passes(check: Callable[[], None], name: str, instead: str) -> bool:
    try:
        check()
    except Exception as error:  # whatever a compiler makes of it, serving can do without
        _stop_if_broken(name, error)
        logger.warning(
            "prismoe's %s does not work on this GPU: %s. Please report it with this error: %s",
            name,
            instead,
            error,
        )
        return False
    return True


def _stop_if_broken(name: str, cause: Exception) -> None:
    """After an access to memory that is not there, CUDA refuses whatever a process asks of it."""
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        raise RuntimeError(
            f"prismoe's {name} broke its work on this GPU. Start again with {PLAIN_KERNELS}=1 in the "
            f"environment, which does without prismoe's kernels, and please report this error: {cause}"
        ) from cause
