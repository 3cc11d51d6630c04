"""Under `native`, every cell of the expert load equals a count in transformers' own forward pass."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm import LLM, RequestOutput, SamplingParams
from vllm.v1.metrics.reader import Counter

from tests.model_plugins.engine import engine, greedy, logits, prompt_logits, rank_cores
from tests.model_plugins.in_tree.chats import PICTURE_AND_VIDEO, TEXT, TWO_PICTURES, VIDEO, Chat, picture
from tests.model_plugins.in_tree.reference import MODALITIES, Answer, answers
from tests.model_plugins.in_tree.test_stock_vllm import stock_engine
from tests.model_plugins.in_tree.tiny_model import BYTES
from tests.runners import Runner, started_with

pytestmark = pytest.mark.engine

CHUNK = 16
"""The tokens of a step: less than a prompt, and no multiple of an image's tokens."""
ANSWER = 30
LETTERS = list(range(BYTES))
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, allowed_token_ids=LETTERS)
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
OFTEN = [
    ("qwen3-vl-moe", "in chunks", "v2"),
    ("qwen3-vl-moe", "two ranks", "v1"),
    ("glm4v-moe", "compiled", "v1"),
]
"""The engines of a normal run. PRISMOE_EVERYWHERE=1 starts all of them, which takes half an hour."""
STARTED = EVERYWHERE if os.environ.get("PRISMOE_EVERYWHERE") == "1" else OFTEN


class Rig:
    """An engine of one of the models, and transformers' results for its chats."""

    def __init__(self, llm: LLM, folder: Path, chats: Sequence[Chat]) -> None:
        self.llm, self.folder, self.chats = llm, folder, [*chats, *MORE]
        self.answers = answers(folder, self.chats)
        self.counted = self.load()

    def load(self) -> np.ndarray:
        """The load as `[layer, modality, expert]`, the same on all ranks."""
        loads = self.llm.collective_rpc("prismoe_expert_load")
        assert all(load == loads[0] for load in loads)
        assert loads[0]["modalities"] == [*MODALITIES]
        return np.array(loads[0]["expert_tokens"])

    def run(self, indices: Sequence[int]) -> list[RequestOutput]:
        """Answer chats together, and check that the tokens and each count are transformers'."""
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
        np.testing.assert_array_equal(self.counted - before, np.sum(computed, axis=0))
        return outputs


def counts_behind(answer: Answer, cached: int) -> np.ndarray:
    """The counts of the tokens that don't come from the prefix cache."""
    layers = len(answer.experts_LTK)
    counts = np.zeros((layers, len(MODALITIES), answer.num_experts), dtype=np.int64)
    for layer, experts_TK in enumerate(answer.experts_LTK[:, cached:]):
        np.add.at(counts[layer], (answer.modality_T[cached:, None], experts_TK), 1)
    return counts


@pytest.fixture(scope="module", params=STARTED, ids="-".join)
def rig(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Iterator[Rig]:
    name, how, runner = request.param
    folder, options = checkpoint(name), ENGINES[how]
    limits = {"image": 4, "video": 1}
    with (
        rank_cores(options.get("tensor_parallel_size", 1)),
        engine(folder, runner=runner, limit_mm_per_prompt=limits, block_size=32, **options) as llm,
    ):
        yield Rig(llm, folder, CHATS[name])


def test_each_chat_cold_and_warm_and_eight_together(rig: Rig) -> None:
    every = range(len(rig.chats))
    for index in every:
        [cold] = rig.run([index])
        assert not cold.num_cached_tokens
    warm = [rig.run([index])[0] for index in every]
    assert sum(output.num_cached_tokens or 0 for output in warm) > 0
    rig.llm.reset_prefix_cache()
    rig.run([0, 1, 2, 3, 4, 5, 6, 1])


def test_chunks_split_an_image(checkpoint: Callable[[str], Path]) -> None:
    """Otherwise the engine "in chunks" would show nothing."""
    for name in ("qwen3-vl-moe", "glm4v-moe"):
        [answer] = answers(checkpoint(name), [TWO_PICTURES])
        modality_T = answer.modality_T
        cuts = range(CHUNK, len(modality_T), CHUNK)
        assert any(modality_T[cut - 1] == 1 and modality_T[cut] == 1 for cut in cuts)


@pytest.fixture(scope="module")
def drafting(checkpoint: Callable[[str], Path]) -> Iterator[LLM]:
    """An engine whose drafts are the tokens that followed the last token before."""
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 2}
    options: dict[str, Any] = {"limit_mm_per_prompt": {"image": 1}, "disable_log_stats": False}
    with engine(checkpoint("qwen3-vl-moe"), speculative_config=drafts, **options) as llm:
        yield llm


def test_rejected_drafts_count(drafting: LLM, checkpoint: Callable[[str], Path]) -> None:
    """They are computed like other tokens. Most of these drafts are wrong."""
    chat = Chat((picture(5), "Again and again and again"))
    params = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True, allowed_token_ids=LETTERS)
    [output] = drafting.generate([chat.for_vllm(checkpoint("qwen3-vl-moe"))], params, use_tqdm=False)
    reported = {metric.name: metric.value for metric in drafting.get_metrics() if isinstance(metric, Counter)}
    drafted, accepted = (reported[f"vllm:spec_decode_num_{what}_tokens"] for what in ("draft", "accepted"))
    assert drafted > accepted
    computed = len(output.prompt_token_ids or ()) + ANSWER - 1 + drafted - accepted
    load = drafting.collective_rpc("prismoe_expert_load")[0]
    assert [sum(tokens) for tokens in load["tokens"]] == [computed] * 3
    assert np.array(load["expert_tokens"]).sum(axis=(1, 2)).tolist() == [2 * computed] * 3


def test_routers_are_still_observed_after_weights_are_reloaded(drafting: LLM) -> None:
    before = drafting.collective_rpc("prismoe_expert_load")[0]
    drafting.collective_rpc("reload_weights")
    assert drafting.collective_rpc("prismoe_expert_load")[0] == before
    drafting.collective_rpc("_check_counts")
    routing = drafting.collective_rpc("prismoe_routing")[0]
    assert len(routing["layers"]) == 3 and routing["not_supported"] == []


def test_qwen3_5_in_bfloat16(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Its linear attention needs bfloat16 on CPU: the counts are compared with the logits of the same run."""
    folder, file, used = checkpoint("qwen3.5-moe"), tmp_path / "recorded.npz", 3
    chats = (TEXT, TWO_PICTURES, VIDEO, PICTURE_AND_VIDEO)
    expected = np.zeros((4, 3, 8), dtype=np.int64)
    with engine(folder, dtype="bfloat16", limit_mm_per_prompt={"image": 4, "video": 1}) as llm:
        llm.collective_rpc("prismoe_start_recording")
        for chat, answer in zip(chats, answers(folder, chats), strict=True):
            [output] = llm.generate([chat.for_vllm(folder)], GREEDY, use_tqdm=False)
            assert output.prompt_token_ids == answer.prompt_ids
            llm.collective_rpc("prismoe_save_recording", args=(str(file),))
            recorded = np.load(file)
            for layer in range(4):
                logits_TE = recorded[f"layer{layer}_router_logits"]
                experts_TK = recorded[f"layer{layer}_topk_ids"]
                assert experts_TK.shape == (len(answer.modality_T), used)
                chosen_TK = np.take_along_axis(logits_TE, experts_TK, axis=1)
                assert (chosen_TK.min(axis=1) >= np.sort(logits_TE, axis=1)[:, -used]).all()
                np.add.at(expected[layer], (answer.modality_T[:, None], experts_TK), 1)
        load = llm.collective_rpc("prismoe_expert_load")[0]
    assert load["expert_tokens"] == expected.tolist()
    assert expected.sum(axis=2)[:, 1:].all()


@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_the_logits_are_those_of_stock_vllm_bit_for_bit(
    checkpoint: Callable[[str], Path], runner: Runner
) -> None:
    folder = checkpoint("qwen3-vl-moe")
    options: Any = {"max_logprobs": -1, "logprobs_mode": "raw_logits", "max_num_batched_tokens": 1024}
    found = []
    with started_with(runner), stock_engine("qwen3-vl-moe", folder, **options) as llm:
        found.append(all_logits(llm, folder))
    with engine(folder, runner=runner, limit_mm_per_prompt={"image": 4, "video": 1}, **options) as llm:
        found.append(all_logits(llm, folder))
    stock, native = found
    for theirs, ours in zip(stock, native, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def all_logits(llm: LLM, folder: Path) -> list[np.ndarray]:
    """The logits of each token of the prompt and the answer, for each chat alone."""
    params = greedy(GREEDY.max_tokens or 0)
    prompts = [chat.for_vllm(folder) for chat in (TEXT, TWO_PICTURES, VIDEO)]
    outputs = [llm.generate(prompt, params, use_tqdm=False)[0] for prompt in prompts]
    return [np.concatenate([prompt_logits(output), logits(output.outputs[0].logprobs)]) for output in outputs]
