"""Runs vLLM's scheduler without an engine, with random settings and requests, and checks its promises."""

from collections import Counter, defaultdict, deque
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from vllm import SamplingParams
from vllm.config import SchedulerConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from prismoe.model_plugins.worker.engine_checks import ASYNC, check_engine
from prismoe.model_plugins.worker.engine_options import engine_options
from tests.model_plugins.engine import PHI

TOKENS_PER_IMAGE = 16
TEXT_TOKEN, IMAGE_TOKEN, ANSWER_TOKEN = 1, 2, 3
init_none_hash(sha256)

Kept = Literal["image", "request"]
POLICIES: dict[Kept | None, dict[str, Any]] = {
    None: {"policy": "topk"},
    "image": {"policy": "ltdr"},
    "request": {"policy": "ltdr", "mean_over": "request"},
}
"""The policies by what they need in one step."""


@dataclass(frozen=True)
class Settings:
    """The operator's settings, and the engine's KV cache."""

    keeps: Kept | None  # the images that a policy needs in one step
    scheduler: dict[str, Any]  # of vLLM's SchedulerConfig
    max_model_len: int = 256
    block_size: int = 16
    blocks: int = 1000
    caching: bool = True
    encoder_tokens: int | None = None  # limits of a step and of the encoder's cache; None is vLLM's default
    window: int = 0  # the window of a second kind of attention layers, in tokens; 0 is none
    replays: bool = False  # whether vLLM computes the window again after a prefix-cache hit

    @property
    def kv_cache(self) -> KVCacheConfig:
        shape: dict[str, Any] = {"num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}
        specs: list[KVCacheSpec] = [FullAttentionSpec(self.block_size, **shape)]
        if self.replays:
            window = SlidingWindowMLASpec(
                self.block_size, **shape, sliding_window=self.window, bounded_replay=True
            )
            specs.append(window)
        elif self.window:
            specs.append(SlidingWindowSpec(self.block_size, **shape, sliding_window=self.window))
        groups = [KVCacheGroupSpec([str(index)], spec) for index, spec in enumerate(specs)]
        return KVCacheConfig(self.blocks, [], groups)


@dataclass(frozen=True)
class Prompt:
    """A request. Numbers are runs of text tokens, names are images."""

    parts: tuple[int | str, ...]
    max_tokens: int
    arrival: int = 0  # the step before which it arrives
    priority: int = 0

    @property
    def images(self) -> list[tuple[str, int]]:
        """The name and offset of each image."""
        images, position = [], 0
        for part in self.parts:
            if isinstance(part, str):
                images.append((part, position))
            position += TOKENS_PER_IMAGE if isinstance(part, str) else part
        return images

    @property
    def tokens(self) -> list[int]:
        return [
            token
            for part in self.parts
            for token in ([IMAGE_TOKEN] * TOKENS_PER_IMAGE if isinstance(part, str) else [TEXT_TOKEN] * part)
        ]

    @property
    def work(self) -> int:
        """The number of prompt and answer tokens."""
        return len(self.tokens) + self.max_tokens


@cache
def engine_config(keeps: Kept | None) -> VllmConfig:
    options: dict[str, Any] = {"max_model_len": 256, "limit_mm_per_prompt": {"image": 8}}
    return EngineArgs(str(PHI), **options | dict(engine_options(POLICIES[keeps]))).create_engine_config()


@cache
def structured_output() -> StructuredOutputManager:
    return StructuredOutputManager(engine_config(None))


def configure(settings: Settings) -> VllmConfig:
    """The engine's settings. Raises ValueError if the start is refused."""
    config = copy(engine_config(settings.keeps))
    given = config.scheduler_config
    config.model_config = copy(config.model_config)
    config.model_config.max_model_len = settings.max_model_len
    config.cache_config = copy(config.cache_config)
    config.cache_config.num_gpu_blocks = settings.blocks
    config.cache_config.enable_prefix_caching = settings.caching and settings.keeps != "request"
    config.scheduler_config = SchedulerConfig(
        max_model_len=settings.max_model_len,
        is_encoder_decoder=False,
        scheduler_cls=given.scheduler_cls,
        **{"async_scheduling": False, **settings.scheduler},
    )
    if settings.encoder_tokens is not None:
        config.scheduler_config.max_num_encoder_input_tokens = settings.encoder_tokens
        config.scheduler_config.encoder_cache_size = settings.encoder_tokens
    check_engine(config, settings.keeps is not None, TOKENS_PER_IMAGE, settings.keeps == "request")
    if config.scheduler_config.async_scheduling:  # like on a GPU, where these would be chosen
        chosen: Any = config.scheduler_config.get_scheduler_cls()
        config.scheduler_config.scheduler_cls = ASYNC.get(chosen, AsyncScheduler)
    return config


class Run:
    """The schedules of one engine. Call `step` until all requests are finished."""

    def __init__(self, settings: Settings, config: VllmConfig) -> None:
        self.settings, self.seen = settings, Counter[str]()
        self.scheduler: Any = config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=settings.kv_cache,
            structured_output_manager=structured_output(),
            block_size=settings.block_size,
            hash_block_size=settings.block_size,
        )
        self.finished: set[str] = set()
        self.requests: dict[str, Request] = {}
        self._written: defaultdict[int, set[int]] = defaultdict(set)  # slots by block
        self._in_flight: deque[tuple[SchedulerOutput, set[str]]] = deque()
        self._at_once = 2 if config.scheduler_config.async_scheduling else 1
        self._watch_blocks()

    def add(self, name: str, prompt: Prompt) -> None:
        self.requests[name] = Request(
            name,
            prompt.tokens,
            SamplingParams(max_tokens=prompt.max_tokens, ignore_eos=True),
            None,
            arrival_time=len(self.requests),
            priority=prompt.priority,
            mm_features=[
                MultiModalFeatureSpec(None, "image", image, PlaceholderRange(offset, TOKENS_PER_IMAGE))
                for image, offset in prompt.images
            ],
            block_hasher=get_request_block_hasher(self.settings.block_size, sha256),
        )
        self.scheduler.add_request(self.requests[name])

    def step(self) -> dict[str, int]:
        """Run a step like vLLM's engine core; return the number of tokens of each request in it."""
        waiting = [name for name, request in self.requests.items() if request.status == RequestStatus.WAITING]
        scheduled = self.scheduler.schedule()
        if self.settings.scheduler.get("policy") != "priority":
            new = [name in scheduled.num_scheduled_tokens for name in waiting]
            self.seen["requests let in before an earlier one"] += new != sorted(new, reverse=True)
        self._check(scheduled)
        counts: dict[str, int] = scheduled.num_scheduled_tokens
        answered = {name for name in counts if not self.requests[name].is_prefill_chunk}
        self._in_flight.append((scheduled, answered))
        if len(self._in_flight) == self._at_once or not counts:
            self._answer(*self._in_flight.popleft())
        return counts

    def _answer(self, scheduled: SchedulerOutput, answered: set[str]) -> None:
        names = list(scheduled.num_scheduled_tokens)
        output = ModelRunnerOutput(
            names,
            {name: index for index, name in enumerate(names)},
            [[ANSWER_TOKEN] if name in answered else [] for name in names],
        )
        for outputs in self.scheduler.update_from_output(scheduled, output).values():
            self.finished |= {answer.request_id for answer in outputs.outputs if answer.finished}

    def _check(self, scheduled: SchedulerOutput) -> None:
        assert scheduled.total_num_scheduled_tokens <= self.scheduler.scheduler_config.max_num_batched_tokens
        self.seen["preemptions"] += len(scheduled.preempted_req_ids or ())
        for name, count in scheduled.num_scheduled_tokens.items():
            request = self.requests[name]
            stop = request.num_computed_tokens
            self._check_images(request, stop - count, stop)
            self._check_slots(name, stop - count, stop)

    def _check_images(self, request: Request, start: int, stop: int) -> None:
        """Check that an image's tokens have its embeddings, and a whole image's step has all of them."""
        embeds: list[int] = []
        for feature in request.mm_features:
            offset = feature.mm_position.offset
            computed = min(stop, offset + TOKENS_PER_IMAGE) - max(start, offset)
            if computed > 0:
                embedded = self.scheduler.encoder_cache_manager.cached[feature.identifier]
                assert request.request_id in embedded
                is_whole = computed == TOKENS_PER_IMAGE
                self.seen["whole images" if is_whole else "cut images"] += 1
                assert is_whole or self.settings.keeps is None, (request.request_id, start, stop)
                embeds.append(computed)
        if self.settings.keeps == "request" and embeds:
            assert sum(embeds) == TOKENS_PER_IMAGE * len(request.mm_features), (
                request.request_id,
                start,
                stop,
            )
            self.seen["requests with all their images"] += len(embeds) > 1

    def _check_slots(self, name: str, start: int, stop: int) -> None:
        """Check that a slot of the KV cache is written once until its block belongs to another request."""
        if self.settings.replays:  # writes only the window's slots
            return
        for blocks in self.scheduler.kv_cache_manager.get_block_ids(name):
            for position in range(start, stop):
                block, slot = divmod(position, self.settings.block_size)
                assert slot not in self._written[blocks[block]], (name, position)
                self._written[blocks[block]].add(slot)

    def _watch_blocks(self) -> None:
        """Forget a block's contents when it gets to another request, and count hits that end in images."""
        manager = self.scheduler.kv_cache_manager
        get_new_blocks, get_computed_blocks = manager.block_pool.get_new_blocks, manager.get_computed_blocks

        def watched_new_blocks(number: int) -> Any:
            blocks = get_new_blocks(number)
            for block in blocks:
                self._written.pop(block.block_id, None)
            return blocks

        def watched_computed_blocks(request: Request) -> Any:
            found = get_computed_blocks(request)
            ranges = [feature.mm_position for feature in request.mm_features]
            self.seen["hits that end inside an image"] += any(
                image.offset < found[1] < image.offset + image.length for image in ranges
            )
            return found

        manager.block_pool.get_new_blocks = watched_new_blocks
        manager.get_computed_blocks = watched_computed_blocks
