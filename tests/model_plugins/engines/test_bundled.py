"""The bundled model's own routing: its checkpoint says LTDR, which changes images and not text."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm import LLM, RequestOutput

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from tests.model_plugins.engine import engine, greedy, logits

CHECKPOINT = bundled_checkpoint()
PICTURES = json.loads((CHECKPOINT / "pictures" / "pictures.json").read_text())
TEXT = "USER: What is a dog? ASSISTANT:"


def requests() -> list[dict[str, Any]]:
    """One question about each picture that was not in the training set."""
    question = "USER: <image>\nWhat is this? ASSISTANT:"
    images = [Image.open(CHECKPOINT / "pictures" / picture["file"]).convert("RGB") for picture in PICTURES]
    return [{"prompt": question, "multi_modal_data": {"image": image}} for image in images]


def answers(llm: LLM, prompts: list[Any]) -> list[RequestOutput]:
    return [llm.generate(prompt, greedy(4, with_prompt=False), use_tqdm=False)[0] for prompt in prompts]


@pytest.fixture(scope="module")
def ltdr() -> Iterator[LLM]:
    with engine(CHECKPOINT) as llm:
        yield llm


@pytest.fixture(scope="module")
def by_ltdr(ltdr: LLM) -> list[RequestOutput]:
    return answers(ltdr, [*requests(), TEXT])


def test_the_checkpoint_routes_by_ltdr(ltdr: LLM) -> None:
    routing = ltdr.collective_rpc("prismoe_routing")[0]
    assert routing["source"] == "checkpoint"
    assert {layer["policy"]["policy"] for layer in routing["layers"]} == {"ltdr"}


def test_some_but_not_most_vision_tokens_are_tail_tokens(ltdr: LLM, by_ltdr: list[RequestOutput]) -> None:
    load = ltdr.collective_rpc("prismoe_expert_load")[0]
    shares = np.array(load["tail_tokens"]) / np.array(load["tokens"])[:, 1]
    assert ((shares >= 0.05) & (shares <= 0.5)).all()


def test_topk_changes_images_and_leaves_text_bit_for_bit(by_ltdr: list[RequestOutput]) -> None:
    with engine(CHECKPOINT, {"policy": "topk"}) as topk:
        by_topk = answers(topk, [*requests(), TEXT])
    same = [
        np.array_equal(logits(mine.outputs[0].logprobs)[:1], logits(theirs.outputs[0].logprobs)[:1])
        for mine, theirs in zip(by_ltdr, by_topk, strict=True)
    ]
    assert same == [False] * len(PICTURES) + [True]
    text, theirs = by_ltdr[-1].outputs[0], by_topk[-1].outputs[0]
    np.testing.assert_array_equal(logits(text.logprobs), logits(theirs.logprobs))
