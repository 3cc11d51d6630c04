"""Images are never split if a policy needs them whole, and no request waits forever."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from vllm.config import VllmConfig
from vllm.v1.core.sched.scheduler import Scheduler

from prismoe.model_plugins.vllm_seams.engine.scheduler import WholeImageScheduler, tokens_before_cut
from tests.model_plugins.vllm_seams.engine.schedules import (
    TOKENS_PER_IMAGE,
    Kept,
    Prompt,
    Run,
    Settings,
    configure,
)

ENDLESS = 2000  # tokens of an answer: more steps than any schedule here has


def many(schedules: int) -> Callable[..., Any]:
    return settings(
        max_examples=schedules,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


gaps_and_lengths = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), max_size=5)


def images_of(layout: list[tuple[int, int]]) -> list[tuple[int, int]]:
    images, position = [], 0
    for gap, length in layout:
        images.append((position + gap, length))
        position += gap + length
    return images


def is_cut(images: list[tuple[int, int]], position: int) -> bool:
    return any(offset < position < offset + length for offset, length in images)


@given(gaps_and_lengths, st.integers(1, 60))
def test_a_prefill_in_steps_never_splits_an_image(layout: list[tuple[int, int]], budget: int) -> None:
    images = images_of(layout)
    total = sum(map(sum, layout)) + 5
    budget = max([budget, *(length for _, length in images)])
    start = 0
    while start < total:
        count = tokens_before_cut(images, start, min(budget, total - start))
        assert 0 < count <= budget
        start += count
        assert not is_cut(images, start)


def test_an_image_larger_than_the_budget_waits() -> None:
    assert tokens_before_cut([(0, 16)], 0, 14) == 0
    assert tokens_before_cut([(3, 16)], 0, 14) == 3


# There are few different parts, so that prompts share beginnings and the prefix cache has hits.
PARTS = [parts for length in range(1, 5) for parts in product([1, 4, 7, 20, "sun", "moon"], repeat=length)]
prompts = st.lists(
    st.builds(
        Prompt,
        st.sampled_from(PARTS),
        max_tokens=st.integers(1, 28),
        arrival=st.integers(0, 4),
        priority=st.integers(0, 2),
    ),
    min_size=1,
    max_size=5,
)
MAX_MODEL_LEN = 108  # of the longest of these prompts with its answer


SWITCHED: dict[str, list[Any]] = {
    "long_prefill_token_threshold_adaptive": [False, True],
    "disable_chunked_mm_input": [False, False, True],
    "watermark": [0.0, 0.2],
    "policy": ["fcfs", "priority"],
    "scheduler_reserve_full_isl": [False, True],
    "async_scheduling": [False, True],
}
SWITCHES = [dict(zip(SWITCHED, choice, strict=True)) for choice in product(*SWITCHED.values())]


@st.composite
def engines(draw: Any) -> Settings:
    """Settings of all kinds. Some of them can't be served."""
    chunked = draw(st.integers(0, 9)) > 0
    few = st.integers(4, 60) | st.integers(14, 22)
    tokens = draw(few) if chunked else MAX_MODEL_LEN + draw(st.integers(0, 60))
    requests = draw(st.integers(1, 6))
    scheduler = {
        "max_num_batched_tokens": tokens,
        "max_num_seqs": requests,
        "max_num_active_seqs": draw(st.none() | st.integers(1, requests)),
        "max_num_scheduled_tokens": draw(st.none() | st.none() | st.integers(4, tokens)),
        "long_prefill_token_threshold": draw(st.just(0) | st.integers(1, 40)),
        "enable_chunked_prefill": chunked,
    }
    size = draw(st.sampled_from([2, 4, 16, 32]))
    layers = draw(st.sampled_from([{}, {}, {}, {"window": 24}, {"window": 24, "replays": True}]))
    fewest = -(-MAX_MODEL_LEN // size) + 1  # vLLM keeps one block for itself
    if layers:
        fewest = 2 * fewest + 1
    keeps: Kept | None = draw(st.sampled_from([None, None, "image", "image", "request"]))
    encoder = [None, 4 * TOKENS_PER_IMAGE] if keeps == "request" else [None, 0, 2 * TOKENS_PER_IMAGE]
    return Settings(
        keeps,
        scheduler | draw(st.sampled_from(SWITCHES)),
        MAX_MODEL_LEN,
        size,
        blocks=fewest + draw(st.sampled_from([0, 0, 2, 1000 // size])),
        caching=draw(st.integers(0, 3)) > 0,
        encoder_tokens=draw(st.sampled_from(encoder)),
        **layers,
    )


SEEN: Counter[str] = Counter()


def served(engine: Settings) -> VllmConfig | None:
    """The engine's settings after the changes that refusals advise. None if vLLM itself refuses them."""
    for _ in range(5):
        try:
            return configure(engine)
        except ValueError as refusal:
            SEEN["refused"] += 1
            assert engine.keeps or "kept in one step" not in str(refusal)
            advice = re.search(r"use --(?P<option>[a-z-]+) (?P<size>\d+) or more", str(refusal))
            if advice is None:
                assert "max_num_batched_tokens" in str(refusal)
                return None
            chosen = engine.scheduler | {advice["option"].replace("-", "_"): int(advice["size"])}
            engine = replace(engine, scheduler=chosen)
    raise AssertionError(f"What the refusals advise is refused: {engine}")


def run_all(engine: Settings, asked: Sequence[Prompt], most_steps: int) -> None:
    """Start an engine, and run it until all ending requests are answered."""
    SEEN["schedules"] += 1
    config = served(engine)
    if config is None:
        return
    run = Run(engine, config)
    answered = {str(index) for index, prompt in enumerate(asked) if prompt.max_tokens != ENDLESS}
    for step in range(most_steps):
        for index, prompt in enumerate(asked):
            if prompt.arrival == step:
                run.add(str(index), prompt)
        if run.finished >= answered:
            break
        run.step()
    assert run.finished == answered
    SEEN.update(run.seen)


@pytest.mark.slow
@many(1500)
@given(engines(), prompts)
def test_every_request_is_refused_at_once_or_finished(engine: Settings, asked: list[Prompt]) -> None:
    # The first unfinished request gets a token in each step. A preempted one is computed again.
    run_all(engine, asked, 2 * sum(prompt.work for prompt in asked) + 40)


@pytest.mark.slow
@many(500)
@given(engines(), prompts)
def test_no_request_waits_for_others_to_stop_decoding(engine: Settings, asked: list[Prompt]) -> None:
    chosen = engine.scheduler
    slots = chosen["max_num_active_seqs"] or chosen["max_num_seqs"]
    # If a step has fewer tokens than there are requests, vLLM lets some wait; without chunks, whole prompts.
    slots = min(slots, chosen["max_num_scheduled_tokens"] or slots)
    assume(slots > 1 and chosen["enable_chunked_prefill"])
    endless = [Prompt((3,), ENDLESS, priority=index % 3) for index in range(slots - 1)]
    with_room = replace(engine, max_model_len=2 * ENDLESS, block_size=32, blocks=300)
    run_all(with_room, [*endless, *asked], sum(prompt.work for prompt in asked) + 40)


@pytest.mark.slow
def test_the_schedules_covered_the_intended_cases() -> None:
    print("\nmet:", dict(SEEN))
    assert SEEN["schedules"] >= 2000
    assert SEEN["refused"] > 200
    assert SEEN["hits that end inside an image"] > 300
    assert SEEN["preemptions"] > 200
    assert SEEN["whole images"] > 1000
    assert SEEN["cut images"] > 1000
    assert SEEN["requests with all their images"] > 100
    assert SEEN["requests let in before an earlier one"] > 10


WHOLE = {"max_num_batched_tokens": 20, "max_num_seqs": 5}
"""An image of 16 tokens while four requests decode."""


def start(settings: Settings) -> Run:
    return Run(settings, configure(settings))


def test_an_image_without_room_in_a_step_stops_no_later_request() -> None:
    run = start(Settings("image", WHOLE))
    run.add("long", Prompt((30,), 5))
    run.step()  # 20 of its 30 tokens
    run.add("image", Prompt(("sun", 3), 5))
    run.add("text", Prompt((4,), 5))
    assert run.step() == {"long": 10, "text": 4}
    assert run.step() == {"long": 1, "text": 1, "image": 18}


def test_all_images_of_a_request_wait_for_one_step() -> None:
    run = start(Settings("request", {"max_num_batched_tokens": 260, "max_num_seqs": 5}))
    run.scheduler.max_num_scheduled_tokens = 44
    run.add("long", Prompt((20,), 5))
    run.add("images", Prompt((4, "sun", 3, "moon", 9), 5))  # 35 tokens that have to be in one step
    assert run.step() == {"long": 20, "images": 4}  # the first image would fit
    assert run.step() == {"long": 1, "images": 43}
    assert run.step() == {"long": 1, "images": 1}


def test_images_that_do_not_fit_together_hold_no_room() -> None:
    """The encoder's cache has room for three images.

    Two requests each have one of theirs in it, and need two more.
    """
    steps = {"max_num_batched_tokens": 260, "max_num_seqs": 5}
    run = start(Settings("request", steps, encoder_tokens=3 * TOKENS_PER_IMAGE))
    run.add("before", Prompt(("sun",), 1))
    run.step()
    run.add("beside", Prompt(("moon",), 1))
    run.add("a", Prompt((1, "sun", "stars", "clouds"), 1))
    run.add("b", Prompt((1, "moon", "trees", "hills"), 1))
    assert run.step() == {
        "beside": 16,
        "a": 1,
        "b": 49,
    }  # the images that the first one released make room for the second
    for _ in range(4):
        run.step()
    assert run.finished >= {"a", "b"}


def test_a_stream_of_other_requests_does_not_keep_an_image_out() -> None:
    run = start(Settings("image", WHOLE, caching=False))
    run.add("0", Prompt((30,), 1))
    run.add("image", Prompt(("sun",), 1))
    for step in range(1, 100):  # each needs ten tokens of two steps, and ten are too few for the image
        run.add(str(step), Prompt((20,), 1))
        if "image" in run.step():
            break
    assert step == 11


def test_in_smaller_steps_decoding_requests_keep_an_image_out() -> None:
    """So the smallest step that `check_engine` names is really the smallest."""
    run = start(Settings("image", WHOLE))
    run.scheduler.max_num_scheduled_tokens = 19
    for name in "abcd":
        run.add(name, Prompt((1,), 500))
    run.step()
    run.add("image", Prompt(("sun",), 1))
    assert not any("image" in run.step() for _ in range(200))
    run.scheduler.max_num_scheduled_tokens = 20
    assert "image" in run.step()


def test_an_image_inside_which_a_hit_ends_gets_its_own_blocks() -> None:
    run = start(Settings("image", WHOLE | {"max_num_batched_tokens": 100}, block_size=8))
    run.add("reader", Prompt((3, "sun", 9), 50))
    run.step()
    run.add("other", Prompt((3, "sun", 5), 50))  # 16 of its 24 tokens are hit: the image without three tokens
    assert run.step() == {"reader": 1, "other": 24}
    (read,), (own,) = (run.scheduler.kv_cache_manager.get_block_ids(name) for name in ("reader", "other"))
    assert not {*read} & {*own}


def test_sliding_windows_keep_vllms_own_replay() -> None:
    steps = {"max_num_batched_tokens": 100, "max_num_seqs": 5}
    run = start(Settings("image", steps, block_size=8, window=8, replays=True))
    run.add("first", Prompt((3, "sun", 30), 50))
    run.step()
    run.add("long", Prompt((3, "sun", 22), 50))  # 40 of its 41 tokens are hit, and 8 of them are replayed
    assert run.step() == {"first": 1, "long": 9}
    assert run.requests["long"].replay_start == 32
    run.add(
        "short", Prompt((3, "sun", 6), 50)
    )  # 24 of 25 tokens are hit, and a replay would start inside the image
    assert run.step() == {"first": 1, "long": 1, "short": 25}


@pytest.mark.parametrize("limit", [(), (None,), (24,)])
def test_vllms_limit_of_a_hit_is_passed_on(limit: tuple[int | None, ...]) -> None:
    """0.33 passes one, and 0.32 doesn't."""
    seen = []

    class Release(Scheduler):
        def _get_local_prefix_cache_hit(self, request: Any, *given: Any) -> Any:
            seen.append(given)
            return "blocks", 20, 0, False

    class Whole(WholeImageScheduler, Release): ...

    scheduler: Any = object.__new__(Whole)
    scheduler.prefix_replay_tokens, scheduler.kv_cache_manager = 0, None
    assert scheduler._get_local_prefix_cache_hit(waiting(), *limit) == ("blocks", 20, 0, False)
    assert seen == [limit]


@pytest.mark.parametrize("reported", [24, 16])
def test_an_image_at_the_start_of_a_replay_waits_for_room(reported: int) -> None:
    """0.32 passes the number of hit tokens, and 0.33 the start of the computation: 8 tokens are replayed."""
    scheduler: Any = object.__new__(WholeImageScheduler)
    scheduler.prefix_replay_tokens, scheduler.ec_connector, scheduler._passes = 8, None, WeakKeyDictionary()
    request = waiting((16, 10))
    for scheduler._left, waits in [(9, True), (10, False)]:
        assert scheduler._ec_transfer_pending(request, reported) is waits


class Waiting:
    """The part of a request that the scheduler reads."""

    def __init__(self, images: Sequence[tuple[int, int]]) -> None:
        self.mm_features = [
            SimpleNamespace(mm_position=SimpleNamespace(offset=offset, length=length))
            for offset, length in images
        ]


def waiting(*images: tuple[int, int]) -> Any:
    return Waiting(images)
