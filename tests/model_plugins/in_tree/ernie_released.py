"""Configuration and processor of a tiny ERNIE-4.5-VL, in the form of its checkpoints on the Hub.

vLLM only accepts that form, and transformers only its own. This file is copied into the checkpoint, so it
imports nothing of the tests.
"""

from typing import Any

import torch
from transformers import BatchFeature, Ernie4_5_VLMoeProcessor, PretrainedConfig


class VisionConfig(PretrainedConfig):
    """The configuration of the image tower."""

    model_type = "ernie4_5_moe_vl_vision"


class Config(PretrainedConfig):
    """The configuration of the whole model, with the decoder's settings at the top level."""

    model_type = "ernie4_5_moe_vl"
    sub_configs = {"vision_config": VisionConfig}  # noqa: RUF012

    def __init__(self, vision_config: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.vision_config = VisionConfig(**(vision_config or {}))


class Processor(Ernie4_5_VLMoeProcessor):
    """Returns the patches of images and then of videos, as bytes that vLLM normalises."""

    spatial_conv_size = temporal_conv_size = 2

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        video_processor: Any = None,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, video_processor, chat_template)
        size = image_processor.size
        self._size = {name: size[name] for name in ("shortest_edge", "longest_edge")}
        # The names that vLLM looks for.
        image_processor.size = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}

    def __call__(self, text: Any = None, images: Any = None, videos: Any = None, **_: Any) -> BatchFeature:
        raw = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        patches, grids = [], []
        if images:
            prepared = self.image_processor(images, size=self._size, **raw)
            patches.append(prepared["pixel_values"])
            grids.append(prepared["image_grid_thw"])
        if videos:
            prepared = self.video_processor(videos, **raw)
            patches.append(prepared["pixel_values_videos"])
            grids.append(prepared["video_grid_thw"])
        media = {"images": torch.cat(patches), "grid_thw": torch.cat(grids)} if patches else {}
        return BatchFeature({**self.tokenizer(text, return_tensors="pt"), **media})
