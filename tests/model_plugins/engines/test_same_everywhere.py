"""Compiled engines and tensor-parallel ranks give the same routing, counts and answers as one eager rank."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.model_plugins.engine import PHI, engine, greedy, logits
from tests.paths import DATA

BY_TASK = {"policy": "task", "top_k": 1, "tasks": 2, "experts": [3, 1]}
ROUTING = {"policy": "ltdr", "layers": {"2": BY_TASK}}


def answer_and_loads(**options: Any) -> tuple[Any, list[Any]]:
    """The answers, and the expert load of each rank."""
    image = Image.open(DATA / "image.png")
    prompts: list[Any] = [
        {"prompt": "USER: <image>\nWhat is this? ASSISTANT:", "multi_modal_data": {"image": image}},
        {"prompt": "USER: Hello ASSISTANT:"},
    ]
    asks = [greedy(5), greedy(5)]
    for task, ask in enumerate(asks):
        ask.extra_args = {"task": task}
    with engine(PHI, ROUTING, **options) as llm:
        outputs = llm.generate(prompts, asks, use_tqdm=False)
        return [output.outputs[0] for output in outputs], llm.collective_rpc("prismoe_expert_load")


def flat(counts: Any) -> list[float]:
    return [number for part in counts for number in flat(part)] if isinstance(counts, list) else [counts]


@pytest.fixture(scope="module")
def eager() -> tuple[Any, list[Any]]:
    return answer_and_loads()


@pytest.mark.parametrize("options", [{"enforce_eager": False}, {"tensor_parallel_size": 2}], ids=str)
def test_equals_one_eager_rank(
    eager: tuple[Any, list[Any]], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "tensor_parallel_size" in options:
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    answers, loads = answer_and_loads(**options)
    assert len(loads) == options.get("tensor_parallel_size", 1)
    for load in loads:
        assert load["modalities"] == ["text", "image"]
        for name, counts in eager[1][0].items():
            if name == "modalities":
                continue
            # The routing probabilities differ in their last bits.
            accuracy = 1e-3 if name.startswith("routing_") else 0
            np.testing.assert_allclose(flat(load[name]), flat(counts), rtol=accuracy, err_msg=name)
    for mine, theirs in zip(answers, eager[0], strict=True):
        assert mine.token_ids == theirs.token_ids
        np.testing.assert_allclose(logits(mine.logprobs), logits(theirs.logprobs), atol=1e-4)
