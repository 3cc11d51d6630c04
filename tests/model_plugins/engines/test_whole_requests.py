"""The results of a request don't depend on other requests, and exactly its computed tokens are counted."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vllm import LLM, RequestOutput

from prismoe.kernels.routing import PADDING
from tests.model_plugins.engine import PHI, engine, greedy, logits
from tests.paths import DATA

TOKENS_PER_IMAGE, NEW_TOKENS = 16, 5
STEP = 64  # tokens: far fewer than all requests have, so that prompts are split


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


Alone = tuple[RequestOutput, dict[str, np.ndarray]]


def requests() -> list[Any]:
    photo = Image.open(DATA / "image.png")
    return [
        {"prompt": "USER: <image>\nWhat is this? ASSISTANT:", "multi_modal_data": {"image": photo}},
        {"prompt": "USER: A long question without an image, " + "word " * 20 + "ASSISTANT:"},
        {
            "prompt": "USER: " + "so " * 12 + "<image>\nand <image>\nare alike? ASSISTANT:",
            "multi_modal_data": {"image": [picture(1), picture(2)]},
        },
        {"prompt": "<image><image>", "multi_modal_data": {"image": [photo, photo]}},
        {"prompt": "Hi"},
    ]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    steps: dict[str, Any] = {"max_num_batched_tokens": STEP, "max_num_seqs": 8}
    with engine(PHI, {"policy": "ltdr"}, limit_mm_per_prompt={"image": 2}, **steps) as llm:
        yield llm


def load_of(llm: LLM, prompts: list[Any]) -> tuple[list[RequestOutput], dict[str, np.ndarray]]:
    """The answers, and the expert load that they added."""
    before = llm.collective_rpc("prismoe_expert_load")[0]
    outputs = llm.generate(prompts, greedy(NEW_TOKENS, with_prompt=False), use_tqdm=False)
    after = llm.collective_rpc("prismoe_expert_load")[0]
    names = ("expert_tokens", "tokens", "tail_tokens", "tokens_by_experts", "scored_tokens")
    return outputs, {name: np.array(after[name]) - np.array(before[name]) for name in names}


def test_before_any_request_nothing_is_counted(llm: LLM) -> None:
    load = llm.collective_rpc("prismoe_expert_load")[0]
    assert not any(np.any(load[name]) for name in load if name not in ("layers", "modalities"))


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[Alone]:
    answers = [load_of(llm, [request]) for request in requests()]
    return [(output, load) for (output,), load in answers]


def test_small_steps_change_nothing(llm: LLM, alone: list[Alone]) -> None:
    outputs, load = load_of(llm, requests())
    for output, (expected, _) in zip(outputs, alone, strict=True):
        assert output.outputs[0].token_ids == expected.outputs[0].token_ids
        np.testing.assert_allclose(
            logits(output.outputs[0].logprobs), logits(expected.outputs[0].logprobs), atol=1e-4
        )
    for name, counted in load.items():
        np.testing.assert_array_equal(counted, sum(counts[name] for _, counts in alone))


def test_each_computed_token_is_counted_once(alone: list[Alone]) -> None:
    for request, (output, load) in zip(requests(), alone, strict=True):
        images = request["prompt"].count("<image>")
        vision = images * TOKENS_PER_IMAGE
        assert output.prompt_token_ids is not None
        text = len(output.prompt_token_ids) - vision + NEW_TOKENS - 1  # the last token is never computed
        for layer in range(2):
            tail = load["tail_tokens"][layer]
            assert load["tokens"][layer].tolist() == [text, vision]
            assert load["expert_tokens"][layer].sum(axis=1).tolist() == [2 * text, 2 * vision + 2 * tail]
            assert load["tokens_by_experts"][layer].tolist() == [
                [0, 0, text, 0, 0],
                [0, 0, vision - tail, 0, tail],
            ]
            assert load["scored_tokens"][layer].tolist() == [text, vision]
            assert (0 < tail < vision) if images else tail == 0


def test_a_vision_setting_changes_images_and_no_bit_of_text(alone: list[Alone]) -> None:
    with engine(PHI, {"policy": "topk"}, limit_mm_per_prompt={"image": 2}) as other:
        for request, (expected, _) in zip(requests(), alone, strict=True):
            (output,) = other.generate(request, greedy(NEW_TOKENS, with_prompt=False), use_tqdm=False)
            same = np.array_equal(logits(output.outputs[0].logprobs), logits(expected.outputs[0].logprobs))
            assert same == ("<image>" not in request["prompt"])


def test_the_same_request_gets_the_same_answer_20_times(llm: LLM) -> None:
    request, others = requests()[2], [requests()[index % 5] for index in range(15)]
    batches = [[request]] * 10 + [
        [*others[:place], request, *others[place:]] for place in range(0, 15, 3)
    ] * 2
    answers = {
        tuple(
            llm.generate(batch, greedy(NEW_TOKENS, with_prompt=False), use_tqdm=False)[index]
            .outputs[0]
            .token_ids
        )
        for batch in batches
        for index in [batch.index(request)]
    }
    assert len(batches) == 20
    assert len(answers) == 1


def forgot_the_step(model: Any) -> bool:
    return bool((model.routing.step.tokens.segments == PADDING).all())


def test_a_dummy_step_after_a_real_one_counts_nothing(llm: LLM, alone: list[Alone]) -> None:
    assert llm.apply_model(forgot_the_step) == [True]


def test_counting_can_start_from_zero(llm: LLM, alone: list[Alone]) -> None:
    assert np.any(llm.collective_rpc("prismoe_expert_load")[0]["expert_tokens"])
    llm.collective_rpc("prismoe_reset_expert_load")
    test_before_any_request_nothing_is_counted(llm)
