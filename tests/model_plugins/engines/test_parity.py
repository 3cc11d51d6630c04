"""The Phi fixture in vLLM gives the same as the authors' code (float32, with and without an image)."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm import LLM, RequestOutput

from tests.model_plugins.engine import (
    PHI,
    Recording,
    engine,
    greedy,
    logits,
    prompt_logits,
    rank_cores,
    same_on_all_ranks,
    start_recording,
    take_recording,
)
from tests.paths import DATA

REFERENCE = np.load(PHI / "reference_deterministic.npz")
META = json.loads((PHI / "meta.json").read_text())
Answer = tuple[RequestOutput, Recording]


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with rank_cores(request.param), engine(PHI, tensor_parallel_size=request.param) as llm:
        llm.apply_model(start_recording)
        yield llm


@pytest.fixture(scope="module")
def answer(llm: LLM) -> Answer:
    image = Image.open(DATA / "image.png")
    prompt: Any = {"prompt": META["prompt"], "multi_modal_data": {"image": image}}
    (output,) = llm.generate(prompt, greedy(12))
    return output, same_on_all_ranks(llm.apply_model(take_recording))


@pytest.fixture(scope="module")
def text_answer(llm: LLM, answer: object) -> Answer:
    prompt: Any = {"prompt_token_ids": REFERENCE["text_input_ids"][0].tolist()}
    (output,) = llm.generate(prompt, greedy(1))
    return output, same_on_all_ranks(llm.apply_model(take_recording))


def test_prompt_tokens(answer: Answer) -> None:
    expected = REFERENCE["input_ids"][0].tolist()
    image = expected.index(-200)
    actual = answer[0].prompt_token_ids
    assert actual is not None
    assert actual[:image] == expected[:image]
    assert actual[image + META["n_image_tokens"] :] == expected[image + 1 :]


@pytest.mark.parametrize("layer", [0, 2])
def test_routing(answer: Answer, layer: int) -> None:
    step = {name: steps[0] for name, steps in answer[1][layer].items()}
    np.testing.assert_allclose(step["logits"], REFERENCE[f"layer{layer}_router_logits"], atol=1e-4)
    np.testing.assert_array_equal(step["experts"], REFERENCE[f"layer{layer}_topk_ids"])
    np.testing.assert_allclose(step["weights"], REFERENCE[f"layer{layer}_topk_weights"], atol=1e-4)


def test_logits_at_all_positions(answer: Answer) -> None:
    actual = prompt_logits(answer[0])
    assert actual.shape == (58, 512)
    np.testing.assert_allclose(actual, REFERENCE["logits"][0], atol=1e-3)


def test_greedy_tokens(answer: Answer) -> None:
    completion = answer[0].outputs[0]
    assert list(completion.token_ids) == REFERENCE["greedy_ids"].tolist()
    np.testing.assert_allclose(logits(completion.logprobs), REFERENCE["greedy_prefill_logits"], atol=1e-3)


@pytest.mark.parametrize("layer", [0, 2])
def test_text_only_routing(text_answer: Answer, layer: int) -> None:
    step = {name: steps[0] for name, steps in text_answer[1][layer].items()}
    expected = REFERENCE[f"text_layer{layer}_router_logits"]
    np.testing.assert_allclose(step["logits"], expected, atol=1e-4)
    np.testing.assert_array_equal(step["experts"], np.argsort(-expected)[:, :2])


def test_text_only_logits(text_answer: Answer) -> None:
    expected = REFERENCE["text_logits"][0]
    np.testing.assert_allclose(prompt_logits(text_answer[0]), expected, atol=1e-3)
    assert text_answer[0].outputs[0].token_ids[0] == expected[-1].argmax()
