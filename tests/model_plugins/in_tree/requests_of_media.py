"""Requests with any media between their texts, and transformers' tokens and counts for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL.Image import Image as Picture
from torch import Tensor

from tests.model_plugins.in_tree.chats import Video
from tests.model_plugins.in_tree.tiny_model import BYTES

MODALITIES = ("text", "image", "video", "audio")


@dataclass(frozen=True)
class Request:
    """A request whose `text` has `{image}`, `{video}` and `{audio}` in the places of its media."""

    text: str
    pictures: Sequence[Picture] = ()
    videos: Sequence[Video] = ()
    sounds: Sequence[np.ndarray] = ()
    mixes_sound: bool = False
    """Whether the sounds are between the videos' frames."""

    def prompt(self, placeholders: Mapping[str, str]) -> str:
        return self.text.format_map(placeholders)


@dataclass(frozen=True)
class Answer:
    """A greedy answer, with the experts of each computed token."""

    prompt_ids: list[int]
    token_ids: list[int]
    counts: np.ndarray
    """The number of tokens as `[layer, modality, expert]`."""


class Heard:
    """The recorded experts of each router, forward pass by forward pass."""

    def __init__(self, names: Sequence[str]) -> None:
        self.experts: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def keep(self, name: str) -> Callable[[Any, Any, tuple[Tensor, Tensor, Tensor]], None]:
        def keep(_: Any, __: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            self.experts[name].append(output[2].numpy().copy())

        return keep


@contextmanager
def heard(model: Any, ending: str) -> Iterator[Heard]:
    """Record the routers whose names have this ending."""
    routers = {name: module for name, module in model.named_modules() if name.endswith(ending)}
    listener = Heard([*routers])
    hooks = [module.register_forward_hook(listener.keep(name)) for name, module in routers.items()]
    try:
        yield listener
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def generated(model: Any, inputs: Mapping[str, Any], max_tokens: int) -> tuple[list[int], list[int]]:
    """The tokens of the prompt and of the greedy answer, which consists of bytes."""
    vocabulary = model.config.get_text_config().vocab_size
    sequences = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=max_tokens,
        min_new_tokens=max_tokens,
        suppress_tokens=list(range(BYTES, vocabulary)),
    )
    prompt_ids: list[int] = inputs["input_ids"][0].tolist()
    return prompt_ids, sequences[0, len(prompt_ids) :].tolist()


def media_of(request: Request) -> dict[str, Any]:
    """The media as arguments of transformers' processors."""
    media: dict[str, Any] = {"return_tensors": "pt"}
    if request.pictures:
        media["images"] = [*request.pictures]
    if request.videos:
        media["videos"] = [video.frames for video in request.videos]
        media["do_sample_frames"] = False
    if request.sounds:
        media["audio"] = [*request.sounds]
    return media


def for_vllm(request: Request, placeholders: Mapping[str, str], with_metadata: bool) -> Any:
    """The prompt for `LLM.generate`."""
    media: dict[str, Any] = {}
    if request.pictures:
        media["image"] = [*request.pictures]
    if request.videos:
        media["video"] = [
            (video.frames, video.metadata() | {"do_sample_frames": False}) if with_metadata else video.frames
            for video in request.videos
        ]
    if request.sounds:
        media["audio"] = [*request.sounds]
    prompt: dict[str, Any] = {"prompt": request.prompt(placeholders), "multi_modal_data": media}
    return prompt | ({"mm_processor_kwargs": {"use_audio_in_video": True}} if request.mixes_sound else {})
