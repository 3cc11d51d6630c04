"""Stock vLLM gives transformers' answers for the tiny checkpoints, so counts can be compared with either."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm import LLM, SamplingParams

from tests.model_plugins.engine import logits
from tests.model_plugins.in_tree.chats import PICTURE_AND_VIDEO, TEXT, TWO_PICTURES, VIDEO
from tests.model_plugins.in_tree.checkpoints import MODELS
from tests.model_plugins.in_tree.reference import answers
from tests.model_plugins.in_tree.tiny_model import BYTES

pytestmark = pytest.mark.engine

CHATS = {
    "qwen3-vl-moe": (TEXT, TWO_PICTURES, VIDEO, PICTURE_AND_VIDEO),
    "glm4v-moe": (TEXT, TWO_PICTURES, VIDEO),
    "gemma4-moe": (TEXT, TWO_PICTURES, VIDEO, PICTURE_AND_VIDEO),
}
"""The models that run in float32."""
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, allowed_token_ids=list(range(BYTES)))


@contextmanager
def stock_engine(name: str, folder: Path, **changes: Any) -> Iterator[LLM]:
    options: dict[str, Any] = {
        "dtype": str(MODELS[name].dtype).removeprefix("torch."),
        "enforce_eager": True,
        "max_model_len": 1024,
        "limit_mm_per_prompt": {"image": 4, "video": 1},
        "disable_log_stats": True,
    }
    llm = LLM(str(folder), **options | changes)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


@pytest.mark.parametrize("name", CHATS)
def test_the_tokens_are_those_of_transformers(name: str, checkpoint: Callable[[str], Path]) -> None:
    folder, chats = checkpoint(name), CHATS[name]
    with stock_engine(name, folder) as llm:
        outputs = llm.generate([chat.for_vllm(folder) for chat in chats], GREEDY)
    for output, answer in zip(outputs, answers(folder, chats), strict=True):
        assert output.prompt_token_ids == answer.prompt_ids
        assert list(output.outputs[0].token_ids) == answer.token_ids


def test_videos_with_their_own_normalisation(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """vLLM normalises in the vision tower, by default with the image processor's mean also for videos.

    If the video processor has its own mean, only that makes a video differ from transformers'.
    """
    folder = shutil.copytree(checkpoint("qwen3-vl-moe"), tmp_path / "unlike")
    config = json.loads((folder / "processor_config.json").read_text())
    config["video_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    (folder / "processor_config.json").write_text(json.dumps(config))
    [alike] = answers(checkpoint("qwen3-vl-moe"), [VIDEO])
    [unlike] = answers(folder, [VIDEO])
    with stock_engine("qwen3-vl-moe", folder, mm_device_do_normalize=False) as llm:
        [output] = llm.generate([VIDEO.for_vllm(folder)], GREEDY)
    assert list(output.outputs[0].token_ids) == unlike.token_ids != alike.token_ids


def test_in_bfloat16_the_logits_are_close(checkpoint: Callable[[str], Path]) -> None:
    """Rounding changes some of Qwen3.5's tokens, also in transformers. Other input changes all logits."""
    folder, chats = checkpoint("qwen3.5-moe"), (TEXT, TWO_PICTURES, VIDEO, PICTURE_AND_VIDEO)
    first = SamplingParams(temperature=0, max_tokens=1, logprobs=-1)
    with stock_engine("qwen3.5-moe", folder, max_logprobs=-1, logprobs_mode="raw_logits") as llm:
        outputs = llm.generate([chat.for_vllm(folder) for chat in chats], first)
    exact = answers(folder, chats, max_tokens=1, dtype=torch.float32)
    for output, answer in zip(outputs, exact, strict=True):
        assert output.prompt_token_ids == answer.prompt_ids
        off = np.abs(logits(output.outputs[0].logprobs)[0, :BYTES] - answer.first_logits).mean()
        assert off < 0.3 * answer.first_logits.std()
