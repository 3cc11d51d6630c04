"""Whether a kernel does its work on this GPU, which may not be one that it was tried on."""

from collections.abc import Callable

from vllm.logger import init_logger

logger = init_logger("vllm.prismoe.kernels")


def kernel_works(check: Callable[[], None], name: str, instead: str) -> bool:
    """Whether `check` passes; if it raises, a warning tells that the kernel called `name` is not used.

    `instead` is what happens then.
    """
    try:
        check()
    except Exception as error:  # whatever a compiler or a driver makes of it, serving can do without
        logger.warning(
            "prismoe's %s does not work on this GPU: %s. Please report it with this error: %s",
            name,
            instead,
            error,
        )
        return False
    return True
