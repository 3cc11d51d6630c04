"""Under continuous batching, a request is routed the same as alone: three policies in a model of vLLM's."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from vllm import LLM, SamplingParams

from prismoe.kernels import ragged_experts
from prismoe.kernels.ragged_experts import FixedExperts, flat_experts
from prismoe.model_plugins.moe_layer.model_routing import runners_of
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.vllm_seams.engine.step_watch import StepRequests, watch_steps
from tests.model_plugins.engine import engine
from tests.model_plugins.in_tree.reference import UNUSED, Answer, answers
from tests.model_plugins.in_tree.test_counts import CHATS, MORE
from tests.model_plugins.in_tree.test_policies import ENTROPY, HEADS, SKIP, by_layer, rule_of
from tests.model_plugins.in_tree.tiny_model import BYTES

pytestmark = pytest.mark.engine

MODEL = "qwen3-vl-moe"
ROUTING = by_layer(MODEL, SKIP, HEADS, ENTROPY)
POOL = [*CHATS[MODEL], *MORE]
MIXES = int(os.environ.get("PRISMOE_MIXES", "120")) // 4
NEW_TOKENS = 40
PARAMS = SamplingParams(
    temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, allowed_token_ids=list(range(BYTES))
)
SEEN: Counter[str] = Counter()


class Rows(NamedTuple):
    """Neighbouring tokens of a request that a step computed, with the experts of each by layer."""

    request: str
    start: int
    experts: list[list[list[int]]]


def start_recording(worker: Any) -> None:
    """Runs in the worker: record the tokens and experts of each step from now on."""
    worker.rows, worker.pairs = [], 0
    begun: list[tuple[str, int, int]] = []

    def begin(step: StepRequests) -> None:
        begun[:] = zip(step.names, step.computed, step.counts, strict=True)

    def end(step: RoutingStep) -> None:
        _, experts_LTA, count_LT, _ = step.routed()
        row = 0
        for name, start, tokens in begun:
            experts = [
                [sorted(experts_TA[at, : count_T[at]].tolist()) for at in range(row, row + tokens)]
                for experts_TA, count_T in zip(experts_LTA, count_LT, strict=True)
            ]
            worker.rows.append((name, start, experts))
            row += tokens

    for runner in runners_of(worker.model_runner.get_model()):
        experts: Any = runner.routed_experts
        experts.run_used = partial(flat_experts, fixed_experts=_counted(worker, experts.run_used))
    watch_steps(worker.model_runner, begin)
    worker.routing.step_watchers.append(end)


def _counted(worker: Any, run: Any) -> FixedExperts:
    """A layer's kernel, changed to count the pairs that it gets."""
    kernel: FixedExperts = run.keywords["fixed_experts"]

    def counted(hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> Tensor:
        worker.pairs += weights_TA.numel()
        return kernel(hidden_TD, weights_TA, experts_TA)

    return counted


def take_rows(worker: Any) -> tuple[list[tuple[Any, ...]], int]:
    """Runs in the worker: return the rows since the last call, and the number of pairs that ran."""
    taken = worker.rows, worker.pairs
    worker.rows, worker.pairs = [], 0
    return taken


@pytest.fixture(scope="module")
def rig(checkpoint: Callable[[str], Path]) -> Iterator[tuple[LLM, list[Any], list[Answer]]]:
    folder = checkpoint(MODEL)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # this test runs the steps itself
        for least in (ragged_experts.LEAST_WORK, ragged_experts.LEAST_SLOTS):
            environment.setitem(least, torch.float32, 1)  # skip everything that can be skipped
        options: dict[str, Any] = {
            "block_size": 32,
            "num_gpu_blocks_override": 7,  # about 190 tokens: two or three requests at once, then preemption
            "max_model_len": 192,
            "max_num_seqs": 6,
            "max_num_batched_tokens": 192,
            "limit_mm_per_prompt": {"image": 4, "video": 1},
        }
        with engine(folder, ROUTING, **options) as llm:
            llm.collective_rpc(start_recording)
            prompts = [chat.for_vllm(folder) for chat in POOL]
            yield llm, prompts, answers(folder, POOL, NEW_TOKENS, rule=rule_of(MODEL, ROUTING, {}))


arrivals = st.lists(st.tuples(st.integers(0, len(POOL) - 1), st.integers(0, 6)), min_size=1, max_size=6)


@settings(
    max_examples=MIXES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(arrivals, st.integers(8, 100), st.booleans())
def test_a_request_is_routed_the_same_as_alone(
    rig: tuple[LLM, list[Any], list[Answer]], mix: list[tuple[int, int]], step_tokens: int, cold: bool
) -> None:
    llm, prompts, expected = rig
    core: Any = llm.llm_engine.engine_core
    if cold:
        assert core.reset_prefix_cache()
    core.engine_core.scheduler.max_num_scheduled_tokens = step_tokens
    before = load(llm)
    answered = run(llm, prompts, mix)
    counted = np.zeros_like(before)
    computed: Counter[tuple[str, int]] = Counter()
    taken, pairs = llm.collective_rpc(take_rows)[0]
    for rows in map(Rows._make, taken):
        answer = expected[mix[int(rows.request.split("-")[0])][0]]
        for layer, of_tokens in enumerate(rows.experts):
            for place, experts in enumerate(of_tokens, rows.start):
                assert experts == sorted(set(answer.experts_LTK[layer, place].tolist()) - {UNUSED})
                counted[layer, answer.modality_T[place], experts] += 1
        computed.update((rows.request, rows.start + at) for at in range(len(rows.experts[0])))
    assert answered == [expected[chat].token_ids for chat, _ in mix]
    np.testing.assert_array_equal(load(llm) - before, counted)
    assert pairs == counted.sum()  # the kernels run exactly the experts that a token uses
    SEEN["again"] += max(computed.values()) > 1
    SEEN["cut"] += any(rows > step_tokens for rows in (len(expected[chat].prompt_ids) for chat, _ in mix))


def run(llm: LLM, prompts: Sequence[Any], mix: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Run steps until all requests are answered. Each request arrives some steps after the previous one."""
    vllm: Any = llm.llm_engine
    tokens: dict[int, list[int]] = {}
    waiting, pause = list(enumerate(mix)), 0
    while waiting or vllm.has_unfinished_requests():
        while waiting and pause >= waiting[0][1][1]:
            index, (chat, _) = waiting.pop(0)
            vllm.add_request(str(index), prompts[chat], PARAMS)
            pause = 0
        for output in vllm.step():
            if output.finished:
                tokens[int(output.request_id)] = list(output.outputs[0].token_ids)
        pause += 1
    return [tokens[index] for index in range(len(mix))]


def load(llm: LLM) -> np.ndarray:
    """The load as `[layer, modality, expert]`."""
    return np.array(llm.collective_rpc("prismoe_expert_load")[0]["expert_tokens"])


def test_the_mixes_covered_the_intended_cases() -> None:
    assert SEEN["cut"] > MIXES / 3, SEEN
    assert SEEN["again"] > 0, SEEN
