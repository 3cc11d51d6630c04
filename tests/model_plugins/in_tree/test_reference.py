"""The tiny checkpoints are always the same, and the reference counts each computed token once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.model_plugins.in_tree.chats import TWO_PICTURES, VIDEO
from tests.model_plugins.in_tree.checkpoints import MODELS, make_checkpoint
from tests.model_plugins.in_tree.reference import answers

MOE_LAYERS_AND_K = {
    "qwen3-vl-moe": (3, 2),
    "glm4v-moe": (2, 3),
    "qwen3.5-moe": (4, 3),
    "gemma4-moe": (3, 2),
    "kimi-k2.5": (2, 3),
    "cohere2-vision": (2, 2),
    "mistral3-moe": (3, 2),
    "internvl-moe": (3, 2),
    "aria-moe": (3, 2),
    "llama4-moe": (2, 1),
}
WITHOUT_VIDEO = {"cohere2-vision", "mistral3-moe", "aria-moe", "llama4-moe"}
ASKED_OTHERWISE = {"ernie4.5-vl-moe", "qwen3-omni-moe"}
"""Models of `requests_of_media`."""


@pytest.mark.parametrize("name", MODELS)
def test_the_same_bytes_each_time(name: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    again = make_checkpoint(name, tmp_path)
    for file in checkpoint(name).iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


@pytest.mark.parametrize("name", sorted({*MODELS} - ASKED_OTHERWISE))
def test_counts_add_up(name: str, checkpoint: Callable[[str], Path]) -> None:
    """For each layer and modality they add up to the tokens times k. Pictures and videos are separate."""
    layers, k = MOE_LAYERS_AND_K[name]
    chats = {"image": TWO_PICTURES} | ({} if name in WITHOUT_VIDEO else {"video": VIDEO})
    for present, answer in zip(
        chats, answers(checkpoint(name), [*chats.values()], max_tokens=3), strict=True
    ):
        tokens_M = dict(
            zip(("text", "image", "video"), np.bincount(answer.modality_T, minlength=3), strict=True)
        )
        assert sum(tokens_M.values()) == len(answer.prompt_ids) + 2
        assert {name for name, tokens in tokens_M.items() if tokens} == {"text", present}
        assert answer.counts.sum(axis=2).tolist() == [[k * n for n in tokens_M.values()]] * layers
        assert len(answer.token_ids) == 3 and max(answer.token_ids) < 256
