"""vLLM's engine keeps images whole for some policies, and never overwrites shared KV blocks."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm import LLM, SamplingParams

from prismoe.model_plugins.vllm_seams.engine.scheduler import WholeImageScheduler
from tests.model_plugins.engine import PHI, engine
from tests.paths import DATA

TOKENS_PER_IMAGE, BLOCK_SIZE = 16, 32
REFERENCE = np.load(PHI / "reference_deterministic.npz")
PROMPT = json.loads((PHI / "meta.json").read_text())["prompt"]
PICTURE = {"image": Image.open(DATA / "image.png")}


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def start_counting(worker: Any) -> None:
    """Runs in the worker: record the number of image tokens in each step."""
    tokens = worker.model_runner.get_model().routing.step.tokens
    mark, worker.counts = tokens.mark, []

    def count_and_mark(is_media_T: Any, media: Sequence[Any], num_tokens: int) -> None:
        worker.counts.append(sum(image.tokens for image in media))
        mark(is_media_T, media, num_tokens)

    tokens.mark = count_and_mark


def image_tokens_by_step(worker: Any) -> list[int]:
    """Runs in the worker: return the recorded numbers."""
    return [count for count in worker.counts if count]


def test_top_k_answers_even_if_no_step_can_hold_an_image() -> None:
    with engine(PHI, max_num_batched_tokens=12, max_num_seqs=4) as llm:
        llm.collective_rpc(start_counting)
        prompts: Any = [{"prompt": "Hi"}, {"prompt": PROMPT, "multi_modal_data": PICTURE}]
        # A request that decodes for long does not keep others out.
        outputs = llm.generate(prompts, [greedy(30), greedy(12)], use_tqdm=False)
        assert [len(output.outputs[0].token_ids) for output in outputs] == [30, 12]
        assert list(outputs[1].outputs[0].token_ids) == REFERENCE["greedy_ids"].tolist()
        counts = llm.collective_rpc(image_tokens_by_step)[0]
        assert len(counts) > 1
        assert sum(counts) == TOKENS_PER_IMAGE


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """An engine with `ltdr` and the smallest steps that are allowed."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the tests run the steps themselves
        steps: dict[str, Any] = {"max_num_batched_tokens": TOKENS_PER_IMAGE + 3, "max_num_seqs": 4}
        with engine(PHI, {"policy": "ltdr"}, block_size=BLOCK_SIZE, **steps) as llm:
            llm.collective_rpc(start_counting)
            yield llm


def scheduler(llm: LLM) -> Any:
    core: Any = llm.llm_engine.engine_core
    return core.engine_core.scheduler


def blocks_of(llm: LLM, request: str) -> list[int]:
    (name,) = (name for name in scheduler(llm).requests if name.startswith(request))
    (blocks,) = scheduler(llm).kv_cache_manager.get_block_ids(name)
    return list(blocks)


def add(llm: LLM, name: str, text: str, tokens: int) -> None:
    llm.llm_engine.add_request(name, {"prompt": text, "multi_modal_data": PICTURE}, greedy(tokens))


def test_ltdr_sees_images_whole_while_others_decode(llm: LLM) -> None:
    assert type(scheduler(llm)) is WholeImageScheduler
    before = len(llm.collective_rpc(image_tokens_by_step)[0])
    request = {"prompt": "<image>\nWhat is this?", "multi_modal_data": PICTURE}
    decoding = [({"prompt": word}, greedy(30)) for word in ("One", "Two", "Three")]
    prompts, params = zip(*decoding, (request, greedy(3)), strict=True)
    assert len(llm.generate(prompts, params, use_tqdm=False)) == 4
    assert llm.collective_rpc(image_tokens_by_step)[0][before:] == [TOKENS_PER_IMAGE]


def mark_blocks(worker: Any, blocks: list[int]) -> None:
    """Runs in the worker: fill blocks of the KV cache with numbers that no model writes."""
    for layer in worker.model_runner.kv_caches:
        layer[blocks] = 123.0


def marks_left(worker: Any, blocks: list[int]) -> float:
    """Runs in the worker: return the share of these numbers that is unchanged."""
    left = [float((layer[blocks] == 123.0).float().mean()) for layer in worker.model_runner.kv_caches]
    return sum(left) / len(left)


def test_a_running_requests_blocks_are_unchanged_if_a_hit_ends_inside_an_image(llm: LLM) -> None:
    beginning = "so " * 18 + "<image>"
    add(llm, "reader", beginning + "\nWhat is this? ASSISTANT:", 100)
    engine: Any = llm.llm_engine
    while not (out := engine.step()) or not out[0].outputs[0].token_ids:
        pass
    first, second, *_ = read = blocks_of(llm, "reader")
    add(llm, "other", beginning + " and what is that? ASSISTANT:", 100)
    (waiting,) = scheduler(llm).waiting
    image = waiting.mm_features[0].mm_position
    hit = scheduler(llm).kv_cache_manager.get_computed_blocks(waiting)[1]
    assert hit == 2 * BLOCK_SIZE and image.offset < hit < image.offset + image.length
    llm.collective_rpc(mark_blocks, args=(read[:2],))
    for _ in range(10):
        llm.llm_engine.step()
    assert llm.collective_rpc(marks_left, args=(read[:2],)) == [1.0]
    # The hit before the image is still shared.
    assert blocks_of(llm, "other")[0] == first
    assert blocks_of(llm, "other")[1] != second
    llm.llm_engine.abort_request(["reader", "other"])
