"""vLLM schedulers that keep each image in one step, for policies that compare an image's tokens."""

from collections.abc import Sequence
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
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


def cached_tokens_before_cut(images: Images, cached: int, block_size: int) -> int:
    """How many of the first `cached` tokens to take from the prefix cache so that no image is cut.

    That many tokens fill whole blocks, as cached tokens must.
    """
    while (whole := tokens_before_cut(images, 0, cached)) < cached:
        cached = whole - whole % block_size
    return cached


class WholeImages:
    """Ends steps and prefix-cache hits before an image that they would cut (mix it into a Scheduler)."""

    def _try_schedule_encoder_inputs(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> Any:
        num_new_tokens = tokens_before_cut(_images(request), num_computed_tokens, num_new_tokens)
        return super()._try_schedule_encoder_inputs(  # type: ignore[misc]
            request, num_computed_tokens, num_new_tokens, *args, **kwargs
        )

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[KVCacheBlocks, int, int, bool]:
        blocks, cached, *rest = super()._get_local_prefix_cache_hit(request)  # type: ignore[misc]
        whole = cached_tokens_before_cut(_images(request), cached, self.block_size)  # type: ignore[attr-defined]
        if whole < cached:
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, whole)  # type: ignore[attr-defined]
        return blocks, whole, *rest


def _images(request: Request) -> Images:
    positions = [feature.mm_position for feature in request.mm_features]
    return [(position.offset, position.length) for position in positions]


class WholeImageScheduler(WholeImages, Scheduler):
    """For vLLM's synchronous scheduling (CPU)."""


class WholeImageAsyncScheduler(WholeImages, AsyncScheduler):
    """For vLLM's asynchronous scheduling (CUDA)."""
