"""More models, each in one engine: every cell of the expert load equals transformers' count."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.model_plugins.engine import engine
from tests.model_plugins.in_tree import internvl_moe, kimi_k25
from tests.model_plugins.in_tree.chats import PICTURE_AND_VIDEO, TEXT, TWO_PICTURES, VIDEO, Chat
from tests.model_plugins.in_tree.reference import MODALITIES, answers
from tests.model_plugins.in_tree.test_counts import GREEDY, counts_behind
from tests.runners import Runner

pytestmark = pytest.mark.engine


@dataclass(frozen=True)
class Case:
    """A checkpoint, its requests, and their form for vLLM."""

    checkpoint: str
    chats: Sequence[Chat] = (TEXT, TWO_PICTURES)
    modalities: Sequence[str] = ("text", "image")
    limits: Mapping[str, int] = field(default_factory=lambda: {"image": 4})
    options: Mapping[str, Any] = field(default_factory=dict)
    for_vllm: Callable[[Chat, Path], Any] = Chat.for_vllm
    spelled: Mapping[int, int] = field(default_factory=dict)
    """Maps tokens of vLLM or transformers to one token that stands for both."""

    def spell(self, tokens: Sequence[int]) -> list[int]:
        return [self.spelled.get(token, token) for token in tokens]


WITH_VIDEO: dict[str, Any] = {
    "chats": (TEXT, TWO_PICTURES, VIDEO, PICTURE_AND_VIDEO),
    "modalities": MODALITIES,
    "limits": {"image": 4, "video": 1},
}
CASES = {
    "kimi-k2.5": Case(
        "kimi-k2.5",
        kimi_k25.CHATS,
        MODALITIES,
        {"vision_chunk": 4},
        for_vllm=kimi_k25.for_vllm,
        spelled=kimi_k25.SPELLED,
    ),
    "gemma4-moe": Case("gemma4-moe", **WITH_VIDEO),
    "internvl-moe": Case("internvl-moe", **WITH_VIDEO, spelled=internvl_moe.SPELLED),
    "aria-moe": Case("aria-moe"),
    "llama4-moe": Case("llama4-moe"),
    "cohere2-vision": Case("cohere2-vision"),
    "mistral3-moe": Case("mistral3-moe"),
    "transformers": Case(
        "glm4v-moe",
        **WITH_VIDEO | {"chats": (TEXT, TWO_PICTURES, VIDEO)},
        options={"model_impl": "transformers"},
    ),
}
EVERYWHERE: list[tuple[str, Runner]] = [(name, runner) for name in CASES for runner in ("v1", "v2")]
OFTEN: list[tuple[str, Runner]] = [
    ("kimi-k2.5", "v1"),
    ("gemma4-moe", "v1"),
    ("internvl-moe", "v2"),
    ("aria-moe", "v1"),
    ("llama4-moe", "v2"),
    ("cohere2-vision", "v2"),
    ("mistral3-moe", "v1"),
    ("transformers", "v2"),
]
"""The models of a normal run. PRISMOE_EVERYWHERE=1 starts all of them."""
STARTED = EVERYWHERE if os.environ.get("PRISMOE_EVERYWHERE") == "1" else OFTEN


@pytest.mark.parametrize(("name", "runner"), STARTED)
def test_tokens_and_counts(name: str, runner: Runner, checkpoint: Callable[[str], Path]) -> None:
    """Two chats run alone, and then all together."""
    case = CASES[name]
    folder, used = checkpoint(case.checkpoint), len(case.modalities)
    expected = answers(folder, case.chats)
    prompts = [case.for_vllm(chat, folder) for chat in case.chats]
    everything = range(len(prompts))
    counted: Any = 0
    with engine(folder, runner=runner, limit_mm_per_prompt=dict(case.limits), **case.options) as llm:
        for asked in ([0], [1], everything):
            outputs = llm.generate([prompts[index] for index in asked], GREEDY, use_tqdm=False)
            [load] = llm.collective_rpc("prismoe_expert_load")
            assert load["modalities"] == [*case.modalities]
            computed = []
            for output, answer in zip(outputs, (expected[index] for index in asked), strict=True):
                assert case.spell(output.prompt_token_ids or ()) == case.spell(answer.prompt_ids)
                assert list(output.outputs[0].token_ids) == answer.token_ids
                computed.append(counts_behind(answer, output.num_cached_tokens or 0))
            before, counted = counted, np.array(load["expert_tokens"])
            np.testing.assert_array_equal(counted - before, np.sum(computed, axis=0)[:, :used])
    assert counted.sum(axis=(0, 2)).all()
