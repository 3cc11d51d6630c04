"""Under continuous batching a request is routed as it is alone on an idle engine with cold caches."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from vllm import LLM, SamplingParams

from prismoe.kernels.routing import TEXT
from prismoe.model_plugins.scheduler import WholeImageScheduler
from tests.kernels import reference
from tests.model_plugins.engine import PHI, engine
from tests.model_plugins.step_recorder import Row, rows, start_recording_rows, take_steps

MIXES = 300
TOKENS_PER_IMAGE = 16
BLOCK_SIZE = 32
BLOCKS = 8  # some 220 tokens of KV cache: two or three requests at once, and then preemption
FLOAT_NOISE = 1e-5  # of gate logits, whose parity tests hold to 1e-4


class RecordingScheduler(WholeImageScheduler):
    """The scheduler under test, telling where prefix-cache hits end."""

    hits: list[tuple[str, int]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hits = []

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        cached = self.kv_cache_manager.get_computed_blocks(request)[1]
        for feature in request.mm_features:
            start, end = feature.mm_position.offset, feature.mm_position.offset + feature.mm_position.length
            place = "inside an image" if start < cached < end else "at an image's edge"
            if start <= cached <= end:
                self.hits.append((place, cached))
        return super()._get_local_prefix_cache_hit(request)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (56, 56, 3), dtype=np.uint8))


PICTURES = [picture(seed) for seed in range(3)]


class Question(NamedTuple):
    """A request of the pool."""

    text: str
    pictures: tuple[int, ...]
    new_tokens: int

    @property
    def prompt(self) -> dict[str, Any]:
        images = [PICTURES[index] for index in self.pictures]
        return {"prompt": self.text, **({"multi_modal_data": {"image": images}} if images else {})}


# Prompts share beginnings, so that the prefix cache hits; the beginnings' lengths put images across blocks,
# from a block's first token (no beginning) on.
BEGINNINGS = ["", "USER: ", "A curious user asks. USER: "]
IMAGES: list[tuple[str, tuple[int, ...]]] = [
    ("", ()),
    ("<image>\n", (0,)),
    ("<image>\n", (1,)),
    ("<image><image>\n", (0, 0)),
    ("<image><image>\n", (0, 0)),
    ("<image>\nand <image>\n", (1, 0)),
    ("<image>\nand <image> and <image>", (2, 1, 2)),
]
ENDINGS = [("What is this? ASSISTANT:", 4), ("Which of all these is the largest one? ASSISTANT:", 40)]
POOL = [
    Question(beginning + marks + ending, pictures, new_tokens)
    for beginning in BEGINNINGS
    for marks, pictures in IMAGES
    for ending, new_tokens in ENDINGS
]


class Arrival(NamedTuple):
    """A request that comes some steps after the one before it."""

    question: Question
    steps_later: int


class Answer(NamedTuple):
    """What a request got: its tokens, and each of its computed rows."""

    tokens: tuple[int, ...]
    rows: list[Row]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # this test takes the steps itself
        options = {
            "scheduler_cls": RecordingScheduler,
            "block_size": BLOCK_SIZE,
            "num_gpu_blocks_override": BLOCKS,
            "max_model_len": 192,
            "max_num_seqs": 6,
            "max_num_batched_tokens": 192,
            "limit_mm_per_prompt": {"image": 3},
        }
        with engine(PHI, {"policy": "ltdr"}, **options) as llm:
            llm.collective_rpc(start_recording_rows)
            yield llm


def scheduler(llm: LLM) -> RecordingScheduler:
    return llm.llm_engine.engine_core.engine_core.scheduler


def forget_everything(llm: LLM) -> None:
    core = llm.llm_engine.engine_core
    assert core.reset_prefix_cache()
    core.reset_encoder_cache()


def answers(llm: LLM, arrivals: Sequence[Arrival]) -> list[Answer]:
    """Take steps until all requests are answered. Several requests arrive between two steps."""
    vllm, tokens = llm.llm_engine, {}
    waiting, pause = list(enumerate(arrivals)), 0
    llm.collective_rpc(take_steps)
    while waiting or vllm.has_unfinished_requests():
        while waiting and pause >= waiting[0][1].steps_later:
            index, (question, _) = waiting.pop(0)
            params = SamplingParams(temperature=0, max_tokens=question.new_tokens, ignore_eos=True)
            vllm.add_request(str(index), question.prompt, params)
            pause = 0
        for output in vllm.step():
            if output.finished:
                tokens[int(output.request_id)] = tuple(output.outputs[0].token_ids)
        pause += 1
    computed = defaultdict(list)
    for row in rows(llm.collective_rpc(take_steps)[0]):
        computed[int(row.request.split("-")[0])].append(row)
    return [Answer(tokens[index], computed[index]) for index in range(len(arrivals))]


@pytest.fixture(scope="module")
def alone(llm: LLM) -> dict[Question, Answer]:
    answered = {}
    scheduler(llm).max_num_scheduled_tokens = 192
    for question in POOL:
        forget_everything(llm)
        (answered[question],) = answers(llm, [Arrival(question, 0)])
    return answered


arrivals = st.lists(st.builds(Arrival, st.sampled_from(POOL), st.integers(0, 6)), min_size=1, max_size=6)
"""Half of the pool's requests at least share their images, so repeats are common."""

SEEN: Counter[str] = Counter()
NEAR_TIES: set[tuple[str, int]] = set()


@settings(
    max_examples=MIXES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(arrivals, st.integers(TOKENS_PER_IMAGE, 100), st.booleans())
def test_a_request_is_routed_as_it_is_alone(
    llm: LLM, alone: dict[Question, Answer], mix: list[Arrival], step_tokens: int, cold: bool
) -> None:
    if cold:
        forget_everything(llm)
    scheduler(llm).max_num_scheduled_tokens = step_tokens
    before = load(llm)
    answered = answers(llm, mix)
    counted = load(llm) - before
    for (question, _), answer in zip(mix, answered, strict=True):
        assert_routed_alike(question, answer, alone[question])
    np.testing.assert_array_equal(counted, load_of_rows([row for answer in answered for row in answer.rows]))
    SEEN["mixes"] += 1
    SEEN["mixes whose tokens were computed again after a preemption"] += any(
        len({row.position for row in answer.rows}) < len(answer.rows) for answer in answered
    )


def assert_routed_alike(question: Question, answer: Answer, expected: Answer) -> None:
    """Each row as the same row alone, up to a decision that hangs on less than float noise."""
    expected_rows = {row.position: row for row in expected.rows}
    for row in answer.rows:
        if row.experts == expected_rows[row.position].experts:
            continue
        assert is_near_tie(row.position, expected), (question, row, expected_rows[row.position])
        NEAR_TIES.add((question.text, row.position))
        return
    assert answer.tokens == expected.tokens, question


def is_near_tie(position: int, alone: Answer) -> bool:
    """Whether float noise can change what this token, or one before it, is routed to."""
    return any(
        margin < FLOAT_NOISE
        for row in alone.rows
        if row.position <= position
        for margin in margins(row, alone)
    )


def margins(row: Row, alone: Answer) -> Iterator[float]:
    """How far each decision about a token is from the other outcome."""
    image = [other for other in alone.rows if row.segment != TEXT and other.segment == row.segment]
    for layer, logits in enumerate(row.logits):
        ranked = np.sort(logits)[::-1]
        yield ranked[1] - ranked[2]
        if image:
            rpv = [reference.probabilities(other.logits[layer : layer + 1])[0].var() for other in image]
            yield abs(rpv[image.index(row)] - np.mean(rpv))


def load(llm: LLM) -> np.ndarray:
    """`[layers, modalities, E]`: the counters."""
    return np.array(llm.collective_rpc("prismoe_expert_load")[0]["expert_tokens"])


def load_of_rows(computed: Sequence[Row]) -> np.ndarray:
    """The same, counted from the rows."""
    counts = np.zeros((2, 2, 4), dtype=np.int64)
    for row in computed:
        for layer, experts in enumerate(row.experts):
            for expert in experts:
                counts[layer, int(row.segment != TEXT), expert] += 1
    return counts


def test_the_mixes_met_what_they_are_for(llm: LLM) -> None:
    SEEN.update(place for place, _ in scheduler(llm).hits)
    print("\nmet:", dict(SEEN), "near ties:", sorted(NEAR_TIES))
    assert SEEN["mixes"] >= MIXES
    assert SEEN["inside an image"] > MIXES / 10
    assert SEEN["at an image's edge"] > MIXES / 10
    assert SEEN["mixes whose tokens were computed again after a preemption"] > MIXES / 20
    assert len(NEAR_TIES) < 5
