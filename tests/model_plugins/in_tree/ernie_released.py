"""Configuration and processor of a tiny ERNIE-4.5-VL, as its checkpoints bring them along on the Hub.

vLLM takes that form alone, and transformers its own. This file is copied into the checkpoint, so it imports
nothing of the tests.
"""

from typing import Any

import torch
from transformers import BatchFeature, Ernie4_5_VLMoeProcessor, PretrainedConfig


class VisionConfig(PretrainedConfig):
    """Of the image tower."""

    model_type = "ernie4_5_moe_vl_vision"


class Config(PretrainedConfig):
    """Of the whole model, with the decoder's settings at the top."""

    model_type = "ernie4_5_moe_vl"
    sub_configs = {"vision_config": VisionConfig}  # noqa: RUF012

    def __init__(self, vision_config: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.vision_config = VisionConfig(**(vision_config or {}))


class Processor(Ernie4_5_VLMoeProcessor):
    """Gives the patches of images and then of videos together, as bytes: vLLM normalises them."""

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
        # By these names vLLM asks for them.
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
