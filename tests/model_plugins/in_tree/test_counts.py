"""Under `native` every cell of the expert load equals a count over transformers' own forward."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm import LLM, RequestOutput, SamplingParams

from tests.model_plugins.engine import engine, rank_cores
from tests.model_plugins.in_tree.chats import PICTURE_AND_VIDEO, TEXT, TWO_PICTURES, VIDEO, Chat, picture
from tests.model_plugins.in_tree.reference import Answer, answers
from tests.model_plugins.in_tree.tiny_model import BYTES
from tests.runners import Runner

pytestmark = pytest.mark.engine

CHUNK = 16
"""Tokens of a step: less than a prompt, and no multiple of an image's."""
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, allowed_token_ids=list(range(BYTES)))
CHATS: dict[str, Sequence[Chat]] = {
    "qwen3-vl-moe": (TEXT, TWO_PICTURES, VIDEO, PICTURE_AND_VIDEO),
    "glm4v-moe": (TEXT, TWO_PICTURES, VIDEO),
    "gemma4-moe": (TEXT, TWO_PICTURES, VIDEO, PICTURE_AND_VIDEO),
}
MORE = [Chat((picture(seed), f"Picture {seed}?")) for seed in range(30, 34)]
ENGINES: dict[str, dict[str, Any]] = {
    "in chunks": {"max_num_batched_tokens": CHUNK, "max_num_seqs": 8},
    "compiled": {"enforce_eager": False},
    "two ranks": {"tensor_parallel_size": 2},
}
EVERYWHERE = [
    (name, how, runner)
    for name in ("qwen3-vl-moe", "glm4v-moe")
    for how in ENGINES
    for runner in ("v1", "v2")
]


class Rig:
    """An engine of one of the models, and what transformers makes of its chats."""

    def __init__(self, llm: LLM, folder: Path, chats: Sequence[Chat]) -> None:
        self.llm, self.folder, self.chats = llm, folder, [*chats, *MORE]
        self.answers = answers(folder, self.chats)
        self.counted = self.load()

    def load(self) -> np.ndarray:
        """`[layer, modality, expert]`, the same on all ranks."""
        loads = self.llm.collective_rpc("prismoe_expert_load")
        assert all(load == loads[0] for load in loads)
        assert loads[0]["modalities"] == ["text", "image", "video"]
        return np.array(loads[0]["expert_tokens"])

    def run(self, indices: Sequence[int]) -> list[RequestOutput]:
        """Answer chats together. Tokens and each cell of what was counted are transformers'."""
        prompts = [self.chats[index].for_vllm(self.folder) for index in indices]
        outputs = self.llm.generate(prompts, GREEDY, use_tqdm=False)
        expected = [self.answers[index] for index in indices]
        for output, answer in zip(outputs, expected, strict=True):
            assert output.prompt_token_ids == answer.prompt_ids
            assert list(output.outputs[0].token_ids) == answer.token_ids
        before, self.counted = self.counted, self.load()
        computed = [
            counts_behind(answer, output.num_cached_tokens or 0)
            for output, answer in zip(outputs, expected, strict=True)
        ]
        np.testing.assert_array_equal(self.counted - before, sum(computed))
        return outputs


def counts_behind(answer: Answer, cached: int) -> np.ndarray:
    """The cells of those tokens that don't come out of the prefix cache."""
    layers = len(answer.experts_LTK)
    counts = np.zeros((layers, 3, answer.num_experts), dtype=np.int64)
    for layer, experts_TK in enumerate(answer.experts_LTK[:, cached:]):
        np.add.at(counts[layer], (answer.modality_T[cached:, None], experts_TK), 1)
    return counts


@pytest.fixture(scope="module", params=EVERYWHERE, ids="-".join)
def rig(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Iterator[Rig]:
    name, how, runner = request.param
    yield from make_rig(checkpoint(name), CHATS[name], ENGINES[how], runner)


def make_rig(folder: Path, chats: Sequence[Chat], options: dict[str, Any], runner: Runner) -> Iterator[Rig]:
    limits = {"image": 4, "video": 1}
    with (
        rank_cores(options.get("tensor_parallel_size", 1)),
        engine(folder, runner=runner, limit_mm_per_prompt=limits, block_size=32, **options) as llm,
    ):
        yield Rig(llm, folder, chats)


def test_each_chat_cold_and_warm_and_eight_together(rig: Rig) -> None:
    every = range(len(rig.chats))
    for index in every:
        [cold] = rig.run([index])
        assert not cold.num_cached_tokens
    warm = [rig.run([index])[0] for index in every]
    assert sum(output.num_cached_tokens or 0 for output in warm) > 0
    rig.llm.reset_prefix_cache()
    rig.run([0, 1, 2, 3, 4, 5, 6, 1])


def test_chunks_cut_an_image(checkpoint: Callable[[str], Path]) -> None:
    """Or the engine "in chunks" would show nothing."""
    for name in ("qwen3-vl-moe", "glm4v-moe"):
        [answer] = answers(checkpoint(name), [TWO_PICTURES])
        modality_T = answer.modality_T
        cuts = range(CHUNK, len(modality_T), CHUNK)
        assert any(modality_T[cut - 1] == 1 and modality_T[cut] == 1 for cut in cuts)


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_gemma_eager(checkpoint: Callable[[str], Path], runner: Runner) -> None:
    for rig in make_rig(checkpoint("gemma4-moe"), CHATS["gemma4-moe"], {}, runner):
        rig.run([0])
        rig.run([1])
        rig.run([0, 1, 2, 3, 4])
