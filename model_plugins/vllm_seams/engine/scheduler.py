"""vLLM schedulers that keep each image, or all of a request's, in one step: policies compare their tokens."""

from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from prismoe.model_plugins.vllm_seams.check import Needed

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
NEEDS = [
    Needed(f"{SCHEDULER}.__init__", attributes=("prefix_replay_tokens", "max_num_scheduled_tokens")),
    Needed(f"{SCHEDULER}.schedule", ("throttle_prefills",)),
    Needed(f"{SCHEDULER}._reserve_prefill_lookahead", ("request", "num_computed_tokens", "num_new_tokens")),
    Needed(f"{SCHEDULER}._try_schedule_encoder_inputs", ("request", "num_computed_tokens", "num_new_tokens")),
    Needed(f"{SCHEDULER}._get_local_prefix_cache_hit", ("request",)),
    Needed(f"{SCHEDULER}._ec_transfer_pending", ("request", "num_computed_tokens")),
    Needed("vllm.v1.core.kv_cache_manager:KVCacheManager.create_kv_cache_blocks", ("blocks",)),
    Needed("vllm.v1.core.encoder_cache_manager:EncoderCacheManager.free", ("request",)),
    Needed(
        "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.find_longest_cache_hit",
        ("block_hashes", "max_cache_hit_length"),
    ),
]

Image = tuple[int, int]
"""Where an image, or what else is kept whole, is in a prompt: its offset and its length in tokens."""

MOST_PASSES = 8
"""In how many steps requests may be let in before one whose image has no room in these steps."""


def image_around(images: Sequence[Image], position: int) -> Image | None:
    """The image that a cut before the token at `position` would part."""
    return next((image for image in images if image[0] < position < sum(image)), None)


def tokens_before_cut(images: Sequence[Image], start: int, count: int) -> int:
    """How many of `count` tokens from position `start` to take so that no image is cut.

    The step ends before an image that it would hold only in part.
    """
    image = image_around(images, start + count)
    return count if image is None else max(0, image[0] - start)


class WholeImageScheduler(Scheduler):
    """Ends a step, and a prefix-cache hit, before an image that it would cut.

    No request waits for ever. vLLM serves running requests in the order in which it let them in. The first
    that still reads its prompt has all of a step but a token for each request that decodes; that is room for
    an image (`engine_checks`), so it goes on in each step. A waiting request is let in when those before it
    have read their prompts, and others are let in before it in not more than MOST_PASSES steps.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._left = 0  # of the tokens that the step may hold
        self._passes: WeakKeyDictionary[Request, int] = WeakKeyDictionary()

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self._left = min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens)
        return super().schedule(throttle_prefills)

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """vLLM's number of a request's tokens in this step, which it asks for here last."""
        count = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        self._left -= count
        return count

    def _try_schedule_encoder_inputs(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> Any:
        whole = self._kept_whole(request)
        schedule = partial(super()._try_schedule_encoder_inputs, request, num_computed_tokens)
        count = tokens_before_cut(whole, num_computed_tokens, num_new_tokens)
        scheduled = schedule(count, *args, **kwargs)
        count = tokens_before_cut(whole, num_computed_tokens, scheduled[1])
        if count == scheduled[1]:
            return scheduled
        # The encoder has room for some of what belongs together. What it has of the request already must not
        # be held for it: two requests could each hold what the other one waits for.
        self.encoder_cache_manager.free(request)
        return schedule(count, *args, **kwargs)

    def _get_local_prefix_cache_hit(
        self, request: Request, *limit: int | None
    ) -> tuple[KVCacheBlocks, int, int, bool]:
        """vLLM's hit, or the longest one behind which no image is computed in part.

        An image that was hit in part gets KV blocks of its own: others may read those that were hit. vLLM
        0.33 also gives the most tokens to hit, and a shorter hit keeps within that.
        """
        blocks, hit, boundary, diverged = super()._get_local_prefix_cache_hit(request, *limit)
        manager = self.kv_cache_manager
        while image := image_around(self._kept_whole(request), self._start_behind(hit)):
            found, hit, uncached = manager.coordinator.find_longest_cache_hit(
                request.block_hashes, image[0] + self.prefix_replay_tokens
            )
            blocks, boundary = manager.create_kv_cache_blocks(found), hit + uncached if uncached else 0
        return blocks, hit, boundary, diverged

    def _ec_transfer_pending(self, request: Request, num_computed_tokens: int) -> bool:
        """Whether to pass over a waiting request in this step: here, too, if its next image has no room.

        Behind a request that gets no token vLLM would let nobody in.
        """
        if super()._ec_transfer_pending(request, num_computed_tokens):
            return True
        # vLLM 0.32 gives the hit. 0.33 may give where it computes from, less what it replays.
        starts = {num_computed_tokens, self._start_behind(num_computed_tokens)}
        if all(offset not in starts or length <= self._left for offset, length in self._kept_whole(request)):
            return False
        self._passes[request] = self._passes.get(request, 0) + 1
        return self._passes[request] <= MOST_PASSES

    def _kept_whole(self, request: Request) -> list[Image]:
        """What of a request must not be parted."""
        return _images(request)

    def _start_behind(self, hit: int) -> int:
        """Where a prompt is computed from: vLLM replays the last tokens of a hit in some sliding windows."""
        return max(0, hit - self.prefix_replay_tokens)


class WholeImageAsyncScheduler(WholeImageScheduler, AsyncScheduler):
    """The same where vLLM schedules a step before the last one is done, as it does on CUDA."""


class WholeRequestScheduler(WholeImageScheduler):
    """Keeps all images of a request in one step, from the first one's first token to the last one's last.

    The text between them is kept with them. A step has room for a whole prompt (`engine_checks`), so nobody
    waits for ever here either. No prefix is cached: what an image leaves in it depends on those behind it.
    """

    def _kept_whole(self, request: Request) -> list[Image]:
        images = _images(request)
        if not images:
            return []
        start = min(offset for offset, _ in images)
        return [(start, max(map(sum, images)) - start)]


class WholeRequestAsyncScheduler(WholeRequestScheduler, AsyncScheduler):
    """The same where vLLM schedules a step before the last one is done."""


def _images(request: Request) -> list[Image]:
    positions = [feature.mm_position for feature in request.mm_features]
    return [(position.offset, position.length) for position in positions]
