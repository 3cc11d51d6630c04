"""Policies that decide by the whole request give the same routing whatever requests run beside it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from vllm import LLM, SamplingParams

from prismoe.kernels.routing import TEXT
from tests.kernels import reference
from tests.model_plugins.engine import engine
from tests.model_plugins.engines.step_recorder import Row, rows, start_recording_rows, take_steps
from tests.model_plugins.routing.routing_steps import CASES
from tests.model_plugins.tiny_checkpoints import MOE, make_checkpoint

ROUTERS = ["task", "cluster", "instruction", "task by label", "ltdr over the request"]
"""The routing settings by layer."""
ONCE = 4
"""The number of these policies that decide once for all tokens of a request."""
STEP, BLOCK_SIZE, BLOCKS = 24, 32, 8


class Question(NamedTuple):
    """A request with an image or images."""

    text: str
    task: int | None
    pictures: int = 1

    @property
    def prompt(self) -> Any:
        pixels = [np.random.default_rng(seed).integers(0, 255, (56, 56, 3)) for seed in range(self.pictures)]
        images = [Image.fromarray(one.astype(np.uint8)) for one in pixels]
        return {"prompt": self.text, **({"multi_modal_data": {"image": images}} if images else {})}

    @property
    def params(self) -> SamplingParams:
        label = None if self.task is None else {"task": self.task}
        return SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, extra_args=label)


LONG = "USER: <image>\nWhat is this, and what are all the other things beside it? ASSISTANT:"
QUESTIONS = [
    Question(LONG, 0),
    Question(LONG, 1),
    Question(LONG, 2),
    Question(LONG, None),
    Question("USER: What is a router, and what is it for, in so many words? ASSISTANT:", 2, 0),
    Question("<image>", 1),
]


class Answer(NamedTuple):
    """The result of a request: its tokens, and the rows of its computed tokens."""

    tokens: tuple[int, ...]
    rows: list[Row]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = len(ROUTERS)
    routing = {"policy": "topk", "layers": {str(layer): CASES[case] for layer, case in enumerate(ROUTERS)}}
    return make_checkpoint(
        tmp_path_factory.mktemp("requests"),
        "stablelm",
        moe=MOE | {"moe_layers_idx": [*range(layers)], "num_experts": [5] * layers},
        num_hidden_layers=layers,
        prismoe_routing=routing,
    )


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the test reads the scheduler
        options: dict[str, Any] = {
            "block_size": BLOCK_SIZE,
            "num_gpu_blocks_override": BLOCKS,  # two or three requests at once, and then preemption
            "max_model_len": 192,
            "max_num_seqs": 6,
            "max_num_batched_tokens": 197,  # enough for a prompt beside five requests that decode
            "limit_mm_per_prompt": {"image": 2},
        }
        with engine(checkpoint, **options) as llm:
            llm.collective_rpc(start_recording_rows)
            yield llm


def answers(llm: LLM, questions: Sequence[Question], step_tokens: int) -> list[Answer]:
    core: Any = llm.llm_engine.engine_core
    core.engine_core.scheduler.max_num_scheduled_tokens = step_tokens
    llm.collective_rpc(take_steps)
    outputs = llm.generate(
        [question.prompt for question in questions],
        [question.params for question in questions],
        use_tqdm=False,
    )
    computed: dict[int, list[Row]] = defaultdict(list)
    first = min(int(output.request_id) for output in outputs)
    for row in rows(llm.collective_rpc(take_steps)[0]):
        computed[int(row.request.split("-")[0]) - first].append(row)
    return [
        Answer(tuple(output.outputs[0].token_ids), computed[index]) for index, output in enumerate(outputs)
    ]


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[Answer]:
    """The result of each request alone: its prompt is computed in one step."""
    return [answers(llm, [question], step_tokens=192)[0] for question in QUESTIONS]


def test_all_tokens_of_a_request_use_the_same_experts(alone: list[Answer]) -> None:
    for question, answer in zip(QUESTIONS, alone, strict=True):
        assert len({row.experts[:ONCE] for row in answer.rows}) == 1
        assert {row.segment != TEXT for row in answer.rows} >= {question.pictures > 0}
        assert len(answer.rows) > 30  # prompt and answer


def test_only_the_task_chooses_the_experts(alone: list[Answer]) -> None:
    chosen = [answer.rows[0].experts for answer in alone]
    by_label = [set(experts[3]) for experts in chosen]
    assert by_label == [{2}, {0}, {3}, {0}, {3}, {0}]  # the label's expert; the default is 1
    for with_task, other_task in ((0, 1), (1, 2), (0, 2)):
        assert chosen[with_task][1:3] == chosen[other_task][1:3]
        assert alone[with_task].tokens != alone[other_task].tokens
    assert alone[3].rows[0].experts[3] == alone[1].rows[0].experts[3]


def test_the_instruction_chooses_the_experts(alone: list[Answer]) -> None:
    """Two instructions can be in the same cluster; the gate's decision about their means differs."""
    logits = [answer.rows[0].logits[2] for answer in alone]
    assert not np.array_equal(logits[0], logits[4])
    assert not logits[5].any()  # an image alone is without an instruction


def test_small_steps_and_preemption_change_nothing(llm: LLM, alone: list[Answer]) -> None:
    batch = answers(llm, QUESTIONS, step_tokens=STEP)
    preempted = 0
    for answer, expected in zip(batch, alone, strict=True):
        assert {row.experts for row in answer.rows} == {row.experts for row in expected.rows}
        assert answer.tokens == expected.tokens
        preempted += len({row.position for row in answer.rows}) < len(answer.rows)
    assert preempted  # otherwise this test would check nothing


def test_prefixes_are_not_shared(llm: LLM, alone: list[Answer]) -> None:
    """A repeated prompt is computed completely, since the cache could be from another task."""
    (again,) = answers(llm, QUESTIONS[:1], step_tokens=192)
    assert len(again.rows) == len(alone[0].rows)


PAIR = Question("USER: <image>\n<image>\nWhich one is it? ASSISTANT:", 0, 2)


def test_the_images_of_a_request_are_compared_beside_any_requests(llm: LLM) -> None:
    """They share a mean, and therefore a step.

    If the text before them does not fit into it, it is computed first.
    """
    (alone,) = answers(llm, [PAIR], step_tokens=192)
    many = [PAIR, *QUESTIONS[:3], PAIR]
    batch = answers(llm, many, step_tokens=44)
    assert len({row.experts[ONCE] for row in alone.rows if row.segment == 1}) > 1
    for answer in (batch[0], batch[-1]):
        assert answer.tokens == alone.tokens
        by_position = {row.position: row.experts for row in answer.rows}
        assert by_position == {row.position: row.experts for row in alone.rows}


def test_tail_tokens_are_those_above_the_mean_of_all_images_of_the_request(llm: LLM) -> None:
    (answer,) = answers(llm, [PAIR], step_tokens=192)
    seen = [row for row in answer.rows if row.segment != TEXT]
    logits = np.array([row.logits[ONCE] for row in seen])
    tail = reference.tail(reference.probabilities(logits), [0] * len(seen))
    assert [len(row.experts[ONCE]) for row in seen] == [3 if is_tail else 2 for is_tail in tail]
    assert tail != reference.tail(reference.probabilities(logits), [row.segment for row in seen])


def test_an_unknown_task_is_ignored(llm: LLM, alone: list[Answer]) -> None:
    wrong = [Question(LONG, label) for label in (-3, 99, True, "1")]  # type: ignore[arg-type]
    for answer in answers(llm, wrong, step_tokens=192):
        assert answer.tokens == alone[3].tokens
