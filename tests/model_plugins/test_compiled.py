"""Compiled and eager engines route alike, count alike and answer alike (float32)."""

from typing import Any

import numpy as np
from PIL import Image

from tests.model_plugins.engine import DATA, PHI, engine, greedy, logits


def answer_and_load(**options: Any) -> tuple[Any, Any]:
    image = Image.open(DATA / "image.png")
    prompts: list[Any] = [
        {"prompt": "USER: <image>\nWhat is this? ASSISTANT:", "multi_modal_data": {"image": image}},
        {"prompt": "USER: Hello ASSISTANT:"},
    ]
    with engine(PHI, {"policy": "ltdr"}, **options) as llm:
        outputs = llm.generate(prompts, greedy(5), use_tqdm=False)
        return [output.outputs[0] for output in outputs], llm.collective_rpc("prismoe_expert_load")[0]


def test_compiled_equals_eager() -> None:
    eager, eager_load = answer_and_load(enforce_eager=True)
    compiled, compiled_load = answer_and_load(enforce_eager=False)
    assert compiled_load == eager_load
    for mine, theirs in zip(compiled, eager, strict=True):
        assert mine.token_ids == theirs.token_ids
        np.testing.assert_allclose(logits(mine.logprobs), logits(theirs.logprobs), atol=1e-4)
