"""vLLM schedulers that keep each image, or all images of a request, in one step, as policies require."""

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
"""The place of an image, or of anything else that is kept whole, in a prompt: offset and length in tokens."""

MOST_PASSES = 8
"""The number of steps in which other requests may pass a request whose image does not fit."""


def image_around(images: Sequence[Image], position: int) -> Image | None:
    """The image that a cut before the token at `position` would split."""
    return next((image for image in images if image[0] < position < sum(image)), None)


def tokens_before_cut(images: Sequence[Image], start: int, count: int) -> int:
    """How many of `count` tokens from position `start` a step can have so that no image is cut.

    The step ends before an image that would only fit in part.
    """
    image = image_around(images, start + count)
    return count if image is None else max(0, image[0] - start)


class WholeImageScheduler(Scheduler):
    """Ends a step, and a prefix-cache hit, before an image that it would cut.

    No request waits forever. vLLM serves running requests in the order of their admission. The first one that
    still reads its prompt gets the whole step except a token for each request that decodes; that is enough
    for an image (`engine_checks`), so it advances in each step. A waiting request is admitted when those
    before it have read their prompts, and others pass it in at most MOST_PASSES steps.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._left = 0  # tokens that still fit into the step
        self._passes: WeakKeyDictionary[Request, int] = WeakKeyDictionary()

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self._left = min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens)
        return super().schedule(throttle_prefills)

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """vLLM's number of a request's tokens in this step; this is the last call that changes it."""
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
        # The encoder has room for only a part of what belongs together. Release what it already holds of the
        # request: otherwise two requests could each hold what the other one waits for.
        self.encoder_cache_manager.free(request)
        return schedule(count, *args, **kwargs)

    def _get_local_prefix_cache_hit(
        self, request: Request, *limit: int | None
    ) -> tuple[KVCacheBlocks, int, int, bool]:
        """vLLM's hit, or the longest one after which no image is computed in part.

        An image that was hit in part gets its own KV blocks, since others may read those of the hit. vLLM
        0.33 also passes the most tokens to hit, and a shorter hit stays within that.
        """
        blocks, hit, boundary, diverged = super()._get_local_prefix_cache_hit(request, *limit)
        manager = self.kv_cache_manager
        while image := image_around(self._kept_whole(request), self._start_after(hit)):
            found, hit, uncached = manager.coordinator.find_longest_cache_hit(
                request.block_hashes, image[0] + self.prefix_replay_tokens
            )
            blocks, boundary = manager.create_kv_cache_blocks(found), hit + uncached if uncached else 0
        return blocks, hit, boundary, diverged

    def _ec_transfer_pending(self, request: Request, num_computed_tokens: int) -> bool:
        """Whether to pass over a waiting request in this step: also if its next image does not fit.

        After a request that gets no token, vLLM would admit nobody.
        """
        if super()._ec_transfer_pending(request, num_computed_tokens):
            return True
        # vLLM 0.32 passes the hit. 0.33 may pass the start of the computation, less what it replays.
        starts = {num_computed_tokens, self._start_after(num_computed_tokens)}
        if all(offset not in starts or length <= self._left for offset, length in self._kept_whole(request)):
            return False
        self._passes[request] = self._passes.get(request, 0) + 1
        return self._passes[request] <= MOST_PASSES

    def _kept_whole(self, request: Request) -> list[Image]:
        """The parts of a request that must not be split."""
        return _images(request)

    def _start_after(self, hit: int) -> int:
        """The position where computation starts: vLLM replays the end of a hit for some sliding windows."""
        return max(0, hit - self.prefix_replay_tokens)


class WholeImageAsyncScheduler(WholeImageScheduler, AsyncScheduler):
    """The same for vLLM's asynchronous scheduling of a step before the last one has finished, as on CUDA."""


class WholeRequestScheduler(WholeImageScheduler):
    """Keeps all images of a request in one step, from the first one's first token to the last one's last.

    The text between them stays with them. A step has room for a whole prompt (`engine_checks`), so no request
    waits forever here either. No prefix is cached: an image's keys and values depend on the images after it.
    """

    def _kept_whole(self, request: Request) -> list[Image]:
        images = _images(request)
        if not images:
            return []
        start = min(offset for offset, _ in images)
        return [(start, max(map(sum, images)) - start)]


class WholeRequestAsyncScheduler(WholeRequestScheduler, AsyncScheduler):
    """The same for vLLM's asynchronous scheduling."""


def _images(request: Request) -> list[Image]:
    positions = [feature.mm_position for feature in request.mm_features]
    return [(position.offset, position.length) for position in positions]
