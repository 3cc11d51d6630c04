"""Models with unusual tokens or layers: all counts are transformers' as well."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm import LLM, SamplingParams

from tests.model_plugins.engine import engine
from tests.model_plugins.in_tree import ernie4_5_vl_moe, qwen3_omni_moe
from tests.model_plugins.in_tree.chats import picture, video
from tests.model_plugins.in_tree.requests_of_media import Answer, Request, for_vllm
from tests.model_plugins.in_tree.tiny_model import BYTES
from tests.runners import Runner

pytestmark = pytest.mark.engine

TOKENS = 6
GREEDY = SamplingParams(
    temperature=0, max_tokens=TOKENS, ignore_eos=True, allowed_token_ids=list(range(BYTES))
)
RUNNERS: list[Runner] = ["v1", "v2"] if os.environ.get("PRISMOE_EVERYWHERE") == "1" else ["v1"]


def sound(seed: int, seconds: float) -> np.ndarray:
    """Notes at 16 kHz."""
    time_S = np.arange(int(seconds * 16_000)) / 16_000
    notes_N = np.random.default_rng(seed).integers(200, 2000, 4)
    waves_NS = np.sin(2 * np.pi * notes_N[:, None] * time_S)
    return waves_NS.mean(axis=0).astype(np.float32)


TEXT = Request("Which way does the light go?")
PICTURES = Request(
    "First {image} then {image}: what changed?", (picture(1), picture(2, width=128, height=96))
)
VIDEO = Request("{video} Which colours?", videos=(video(10),))
PICTURE_AND_VIDEO = Request("{image} and {video} Which colours?", (picture(3),), (video(20),))
ERNIE = (TEXT, PICTURES, VIDEO, PICTURE_AND_VIDEO)
OMNI = (
    TEXT,
    PICTURES,
    VIDEO,
    PICTURE_AND_VIDEO,
    Request("{audio} Which notes?", sounds=(sound(1, 1.5),)),
    Request("{video} and {audio} beside {image}", (picture(4),), (video(30),), (sound(2, 1.0),)),
    Request("{video} Who speaks?", videos=(video(40),), sounds=(sound(3, 2.8),), mixes_sound=True),
    Request(
        "{image} then {video} Who speaks?",
        (picture(5),),
        (video(50, frames=6),),
        (sound(4, 3.5),),
        mixes_sound=True,
    ),
)


@pytest.mark.parametrize("runner", RUNNERS)
def test_qwen3_omni_with_a_videos_sound_between_its_frames(
    checkpoint: Callable[[str], Path], runner: Runner
) -> None:
    folder, limits = checkpoint("qwen3-omni-moe"), {"image": 2, "video": 1, "audio": 1}
    expected = qwen3_omni_moe.answers(folder, OMNI, TOKENS)
    prompts = [for_vllm(one, qwen3_omni_moe.PLACEHOLDERS, with_metadata=False) for one in OMNI]
    with engine(folder, runner=runner, limit_mm_per_prompt=limits) as llm:
        compare(llm, prompts, expected)


@pytest.mark.parametrize("runner", RUNNERS)
def test_ernie_with_experts_for_text_and_for_vision(
    checkpoint: Callable[[str], Path], runner: Runner
) -> None:
    folder = checkpoint("ernie4.5-vl-moe")
    expected = ernie4_5_vl_moe.answers(folder, ERNIE, TOKENS)
    prompts = [for_vllm(one, ernie4_5_vl_moe.RELEASED_PLACEHOLDERS, with_metadata=True) for one in ERNIE]
    with engine(ernie4_5_vl_moe.as_released(folder), runner=runner, **ernie4_5_vl_moe.ENGINE) as llm:
        routing: Any = llm.collective_rpc("prismoe_routing")[0]
        assert [(layer["layer"], layer["experts"]) for layer in routing["layers"]] == [(1, 16), (2, 16)]
        compare(llm, prompts, expected)


def compare(llm: LLM, prompts: Sequence[Any], expected: Sequence[Answer]) -> None:
    """Compare the requests one by one, and then all together."""
    for prompt, answer in zip(prompts, expected, strict=True):
        before = load(llm)
        [output] = llm.generate(prompt, GREEDY, use_tqdm=False)
        assert output.prompt_token_ids == answer.prompt_ids
        assert list(output.outputs[0].token_ids) == answer.token_ids
        np.testing.assert_array_equal(load(llm) - before, answer.counts)
    llm.reset_prefix_cache()
    before = load(llm)
    llm.generate(prompts, GREEDY, use_tqdm=False)
    np.testing.assert_array_equal(load(llm) - before, sum(answer.counts for answer in expected))


def load(llm: LLM) -> np.ndarray:
    """The load as `[layer, modality, expert]`."""
    expert_load: Any = llm.collective_rpc("prismoe_expert_load")[0]
    return np.array(expert_load["expert_tokens"])
