"""vLLM schedulers that keep each image in one step, for policies that compare an image's tokens."""

from collections.abc import Sequence
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

Images = Sequence[tuple[int, int]]
"""Where a prompt's images are: (offset, length) pairs in tokens, in order."""


def tokens_before_cut(images: Images, start: int, count: int) -> int:
    """How many of `count` tokens from position `start` to take so that no image is cut.

    The step ends before an image that it would hold only in part.
    """
    for offset, length in images:
        if offset < start + count < offset + length:
            return max(0, offset - start)
    return count


class WholeImages:
    """Ends a step before an image that it would cut, and starts at one that a prefix-cache hit cuts.

    To be mixed into a Scheduler.
    """

    def _try_schedule_encoder_inputs(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> Any:
        num_new_tokens = tokens_before_cut(_images(request), num_computed_tokens, num_new_tokens)
        return super()._try_schedule_encoder_inputs(  # type: ignore[misc]
            request, num_computed_tokens, num_new_tokens, *args, **kwargs
        )

    def _mark_prefix_replay(self, request: Request, num_hit_tokens: int, window_loaded: bool) -> int:
        """How many of a prefix-cache hit's last tokens to compute again: those of an image that it cuts.

        Their keys and values are written again too, over the same ones.
        """
        return num_hit_tokens - tokens_before_cut(_images(request), 0, num_hit_tokens)


def _images(request: Request) -> Images:
    positions = [feature.mm_position for feature in request.mm_features]
    return [(position.offset, position.length) for position in positions]


class WholeImageScheduler(WholeImages, Scheduler):
    """For vLLM's synchronous scheduling (CPU)."""


class WholeImageAsyncScheduler(WholeImages, AsyncScheduler):
    """For vLLM's asynchronous scheduling (CUDA)."""
