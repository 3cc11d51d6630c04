"""vLLM schedulers that never cut an image in two steps, for policies that compare an image's tokens."""

from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request


def tokens_before_cut(images: Iterable[tuple[int, int]], start: int, count: int) -> int:
    """How many of `count` tokens from position `start` to take so that no image is cut.

    `images` are (offset, length) pairs. The step ends before an image that it would hold only in part.
    """
    for offset, length in images:
        if offset < start + count < offset + length:
            return max(0, offset - start)
    return count


class WholeImages:
    """Shortens a request's step to end before an image that would be cut (mix it into a Scheduler)."""

    def _try_schedule_encoder_inputs(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> Any:
        positions = [feature.mm_position for feature in request.mm_features]
        images = [(position.offset, position.length) for position in positions]
        num_new_tokens = tokens_before_cut(images, num_computed_tokens, num_new_tokens)
        return super()._try_schedule_encoder_inputs(  # type: ignore[misc]
            request, num_computed_tokens, num_new_tokens, *args, **kwargs
        )


class WholeImageScheduler(WholeImages, Scheduler):
    """For vLLM's synchronous scheduling (CPU)."""


class WholeImageAsyncScheduler(WholeImages, AsyncScheduler):
    """For vLLM's asynchronous scheduling (CUDA)."""
