"""Distinguishes images from videos where vLLM calls both `vision_chunk`: Kimi-K2.5.

An item of this model is an image, or up to four frames of a video. Several frames are a video. A single
frame, such as the last of nine, belongs to a video if the prompt says so right before it; otherwise it is an
image.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vllm.config import ModelConfig
from vllm.tokenizers import cached_tokenizer_from_config

from prismoe.model_plugins.vllm_seams.check import Needed
from prismoe.model_plugins.vllm_seams.engine.step_watch import StepRequests, watch_steps

NEEDS = [
    Needed(
        "vllm.model_executor.models.kimi_k25:KimiK25MultiModalProcessor._get_mm_fields_config",
        attributes=("batched", "flat_from_sizes"),
    ),
    Needed("vllm.multimodal.utils:set_mm_embedding_modality", ("embed", "modality")),
]
ARCHITECTURE = "KimiK25ForConditionalGeneration"
CHUNK = "vision_chunk"
MEDIA = ("image", "video")
BEFORE_A_VIDEO = "video<|media_content|>"
LONGEST = 8
"""More tokens than `BEFORE_A_VIDEO` has in Kimi's vocabulary."""


class NamedChunk(str):
    """vLLM's name of the modality, which it sets on each embedding, together with the item's medium."""

    def __new__(cls, medium: str) -> "NamedChunk":
        return super().__new__(cls, CHUNK)

    def __init__(self, medium: str) -> None:
        self.medium = medium


def medium_of(modality: str) -> str:
    """The medium of an item, by the modality that vLLM gives it."""
    return modality.medium if isinstance(modality, NamedChunk) else modality


def media_of(architecture: str, modalities: Sequence[str]) -> list[str]:
    """The modalities of a model, with images and videos in place of chunks that can be distinguished."""
    if architecture != ARCHITECTURE:
        return [*modalities]
    return [medium for name in modalities for medium in (MEDIA if name == CHUNK else (name,))]


def tells_media(model_config: ModelConfig) -> Callable[[Sequence[int], Any], str]:
    """A function that gives an item's medium from the prompt's token ids and vLLM's feature."""
    if model_config.architecture != ARCHITECTURE:
        return lambda _, feature: str(feature.modality)
    return partial(_medium_of_chunk, cached_tokenizer_from_config(model_config))


def name_chunks(runner: Any, model_config: ModelConfig) -> None:
    """Set the medium of each item in new requests from now on."""
    watch_steps(runner, partial(_name_chunks, tells_media(model_config)))


def _name_chunks(medium: Callable[[Sequence[int], Any], str], step: StepRequests) -> None:
    for request in step.new:
        for feature in request.mm_features:
            feature.modality = NamedChunk(medium(request.prompt_token_ids, feature))


def _medium_of_chunk(tokenizer: Any, prompt_token_ids: Sequence[int], feature: Any) -> str:
    frames = 1 if feature.data is None else int(feature.data["grid_thws"].data.flatten()[0])
    start = feature.mm_position.offset
    before = tokenizer.decode(prompt_token_ids[max(0, start - LONGEST) : start])
    return "video" if frames > 1 or before.endswith(BEFORE_A_VIDEO) else "image"
