"""Kimi's chunks are marked as image or video frames; vLLM still sees them as before."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prismoe.model_plugins.vllm_seams.engine import vision_chunks
from prismoe.model_plugins.vllm_seams.engine.vision_chunks import (
    ARCHITECTURE,
    NamedChunk,
    media_of,
    medium_of,
    name_chunks,
)

WORDS = ("vi", "deo", "image", "<|media_content|>", "<|media_begin|>", "<|media_pad|>", "say video: ")
VI, DEO, IMAGE, CONTENT, BEGIN, PAD, SAY = range(len(WORDS))


class Tokenizer:
    def decode(self, ids: list[int]) -> str:
        return "".join(WORDS[number] for number in ids)


class Runner:
    """Prepares a step like vLLM's V2."""

    req_states = SimpleNamespace(req_id_to_index={})

    def prepare_inputs(self, scheduler_output: Any) -> Any:
        return SimpleNamespace(req_ids=[], num_computed_tokens_np=torch.zeros(0))


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setattr(vision_chunks, "cached_tokenizer_from_config", lambda _: Tokenizer())
    runner, config = Runner(), SimpleNamespace(architecture=ARCHITECTURE)
    name_chunks(runner, config)  # type: ignore[arg-type]
    return runner


@pytest.mark.parametrize(
    ("before", "frames", "medium"),
    [
        ([SAY, BEGIN, IMAGE, CONTENT], 1, "image"),
        ([], 1, "image"),
        ([BEGIN, VI, DEO, CONTENT], 4, "video"),
        ([BEGIN, VI, DEO, CONTENT], 1, "video"),
        ([BEGIN, VI, DEO, CONTENT], None, "video"),
        ([BEGIN, VI, DEO, CONTENT, PAD, IMAGE, CONTENT], 1, "image"),
        ([], 2, "video"),
    ],
)
def test_the_frames_or_the_prompt_decide_about_a_chunk(
    runner: Runner, before: list[int], frames: int | None, medium: str
) -> None:
    data = None if frames is None else {"grid_thws": SimpleNamespace(data=torch.tensor([frames, 6, 6]))}
    position = SimpleNamespace(offset=len(before), length=2)
    feature = SimpleNamespace(modality="vision_chunk", data=data, mm_position=position)
    request = SimpleNamespace(mm_features=[feature], prompt_token_ids=[*before, PAD, PAD, IMAGE])
    runner.prepare_inputs(SimpleNamespace(scheduled_new_reqs=[request], num_scheduled_tokens={}))
    assert medium_of(feature.modality) == medium
    assert feature.modality == "vision_chunk" and hash(feature.modality) == hash("vision_chunk")


def test_a_name_is_passed_unchanged() -> None:
    sent = pickle.loads(pickle.dumps(NamedChunk("video")))
    assert (sent, medium_of(sent)) == ("vision_chunk", "video")


def test_other_models_keep_their_modalities() -> None:
    assert medium_of("audio") == "audio"
    assert media_of(ARCHITECTURE, ["vision_chunk"]) == ["image", "video"]
    assert media_of("NewForConditionalGeneration", ["vision_chunk"]) == ["vision_chunk"]
