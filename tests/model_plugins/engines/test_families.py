"""Every family and tower in vLLM, compared with the plain implementation (float32)."""

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from vllm import LLM

from prismoe.model_plugins.models.moe_llava.processing import pad_to_square
from prismoe.model_plugins.models.moe_llava.tower import tower_image_processor
from prismoe.model_plugins.moe_layer.experts.cpu_experts import WIDE
from tests.model_plugins.engine import (
    engine,
    greedy,
    prompt_logits,
    rank_cores,
    same_on_all_ranks,
    start_recording,
    take_recording,
)
from tests.model_plugins.plain_moe_llava import IMAGE, PlainMoELLaVA
from tests.model_plugins.tiny_checkpoints import FAMILIES, MOE, TOWERS, make_checkpoint

NEW_TOKENS = 4


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


IMAGES = [picture(1, (40, 56)), picture(2, (70, 30)), picture(3, (56, 56))]
REQUESTS: list[tuple[str, list[Image.Image]]] = [
    ("USER: <image>\nWhat is this? ASSISTANT:", IMAGES[:1]),
    ("USER: <image>\n<image>\nAre these alike? ASSISTANT:", IMAGES[1:]),
    ("USER: What is a router? ASSISTANT:", []),
]


def as_prompt(request: tuple[str, list[Image.Image]]) -> Any:
    text, images = request
    return {"prompt": text, **({"multi_modal_data": {"image": images}} if images else {})}


CHECKPOINTS: dict[str, dict[str, Any]] = {
    # The decoder does not depend on its tower: each family runs with one, and each tower with two.
    f"{family}-{tower}": {"family": family, "tower": tower}
    for family, tower in zip(FAMILIES, cycle(TOWERS), strict=False)
} | {
    "phi-residual": {"family": "phi", "moe": MOE | {"use_residual": True}},
    # From this hidden size on, Phi's experts run as separate products.
    "phi-wide": {
        "family": "phi",
        "hidden_size": WIDE,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5,  # with heads of 64, since vLLM only rotates an even number
    },
    "stablelm-k1": {"family": "stablelm", "moe": MOE | {"top_k_experts": 1, "num_experts": [4, 3]}},
    "qwen-dense": {"family": "qwen", "moe": None, "image_aspect_ratio": "square"},
    "stablelm-two-ranks": {"family": "stablelm", "ranks": 2},
    "qwen-two-ranks": {"family": "qwen", "ranks": 2},
}


@pytest.fixture(scope="module", params=list(CHECKPOINTS.values()), ids=list(CHECKPOINTS))
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(request.param)


@pytest.fixture(scope="module")
def checkpoint(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    form = {name: value for name, value in settings.items() if name != "ranks"}
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints"), **form)


@pytest.fixture(scope="module")
def llm(settings: dict[str, Any], checkpoint: Path) -> Iterator[LLM]:
    ranks = settings.get("ranks", 1)
    options = {"limit_mm_per_prompt": {"image": 2}, "max_num_seqs": 8, "tensor_parallel_size": ranks}
    with rank_cores(ranks), engine(checkpoint, **options) as llm:
        llm.apply_model(start_recording)
        yield llm


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> PlainMoELLaVA:
    return PlainMoELLaVA(checkpoint)


def pixel_values(plain: PlainMoELLaVA, checkpoint: Path, images: list[Image.Image]) -> torch.Tensor:
    processor = tower_image_processor(plain.config["mm_image_tower"], str(checkpoint))
    if plain.config["image_aspect_ratio"] == "pad":
        red, green, blue = (int(255 * mean) for mean in processor.image_mean)
        images = [pad_to_square(image, (red, green, blue)) for image in images]
    return processor(images=images, return_tensors="pt")["pixel_values"] if images else torch.empty(0)


def tokens(llm: LLM, text: str) -> list[int]:
    first, *rest = (
        llm.get_tokenizer().encode(chunk, add_special_tokens=False) for chunk in text.split("<image>")
    )
    return [*first, *(token for chunk in rest for token in [IMAGE, *chunk])]


@pytest.mark.parametrize("request_", REQUESTS, ids=["one image", "two images", "text"])
def test_a_request_alone(llm: LLM, plain: PlainMoELLaVA, checkpoint: Path, request_: Any) -> None:
    llm.apply_model(take_recording)
    (output,) = llm.generate(as_prompt(request_), greedy(1), use_tqdm=False)
    recording = same_on_all_ranks(llm.apply_model(take_recording))
    trace = plain(tokens(llm, request_[0]), pixel_values(plain, checkpoint, request_[1]))
    np.testing.assert_allclose(prompt_logits(output), trace.logits, atol=1e-3)
    for layer, expected in trace.router_logits.items():
        np.testing.assert_allclose(recording[layer]["logits"][0], expected, atol=1e-4)
        experts = [[expert for expert, _ in pairs] for pairs in trace.pairs[layer]]
        assert recording[layer]["experts"][0].tolist() == experts


def test_a_mixed_batch_of_8(llm: LLM, plain: PlainMoELLaVA, checkpoint: Path) -> None:
    batch = [REQUESTS[index % 3] for index in range(8)]
    outputs = llm.generate([as_prompt(request) for request in batch], greedy(NEW_TOKENS), use_tqdm=False)
    for request, output in zip(batch, outputs, strict=True):
        images = pixel_values(plain, checkpoint, request[1])
        ids = tokens(llm, request[0])
        trace = plain([*ids, *output.outputs[0].token_ids[:-1]], images)
        split = len(trace.logits) - NEW_TOKENS + 1
        np.testing.assert_allclose(prompt_logits(output), trace.logits[:split], atol=1e-3)
        assert list(output.outputs[0].token_ids) == trace.logits[split - 1 :].argmax(-1).tolist()
