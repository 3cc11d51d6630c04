"""Turns an image and a prompt into pixel values and tokens, as MoE-LLaVA's own code does."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from PIL import Image
from transformers import BatchFeature, PretrainedConfig
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
)
from vllm.multimodal.processing.processor import MultiModalPromptUpdates, PlaceholderFeaturesInfo

from prismoe.model_plugins.models.moe_llava.config import MOST_REQUEST_EXPERTS
from prismoe.model_plugins.models.moe_llava.tower import tokens_per_image, tower_config, tower_image_processor
from prismoe.model_plugins.moe_layer.request_routing import asked_experts

IMAGE_MARK = "<image>"
"""Marks an image in a prompt's text."""

IMAGE_INDEX = -200
"""Marks an image in a prompt's ids, until placeholders replace it (LLaVA's number)."""

IMAGE_FIELDS = dict.fromkeys(["pixel_values", "asked_experts"], MultiModalFieldConfig.batched("image"))
"""The model's inputs for each image."""


def image_inputs(pixel_values: torch.Tensor, asked: tuple[int, int] = (0, 0)) -> BatchFeature:
    """The `IMAGE_FIELDS` of images `[N, 3, H, W]`, with the experts that their request asks for."""
    asked_N2 = torch.tensor([asked] * len(pixel_values))
    return BatchFeature({"pixel_values": pixel_values, "asked_experts": asked_N2})


def pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Pad the image to a centred square of its longer side (`image_aspect_ratio: pad`)."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def pixel_values(config: PretrainedConfig, checkpoint: str, images: Sequence[Image.Image]) -> torch.Tensor:
    """The pixel values `[N, 3, H, W]` by the tower's own image processor, for a checkpoint with this config.

    Raises ValueError for anything but a decoded image.
    """
    processor = tower_image_processor(config.mm_image_tower, checkpoint)
    pad = getattr(config, "image_aspect_ratio", None) == "pad"
    red, green, blue = (int(255 * mean) for mean in processor.image_mean)

    def pixels_1CHW(image: Image.Image) -> torch.Tensor:
        # Transformers' image processors would open a string as a URL or a file.
        if not isinstance(image, Image.Image):
            raise ValueError(f"An image has to be a decoded PIL.Image, not a {type(image).__name__}.")
        image = pad_to_square(image.convert("RGB"), (red, green, blue)) if pad else image
        pixels: torch.Tensor = processor(images=[image], return_tensors="pt")["pixel_values"]
        return pixels

    # One image at a time: padding a long image to a square takes much memory.
    return torch.cat([pixels_1CHW(image) for image in images])


class MoELLaVAProcessingInfo(BaseProcessingInfo):
    """Describes the model's inputs to vLLM."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": self.tokens_per_image}

    @property
    def tokens_per_image(self) -> int:
        return tokens_per_image(self.get_hf_config(), self.ctx.model_config.model)

    @property
    def image_size(self) -> int:
        """The side of the tower's input image, in pixels."""
        size: int = tower_config(self.get_hf_config().mm_image_tower, self.ctx.model_config.model).image_size
        return size

    @property
    def image_token_id(self) -> int:
        """The id at an image's positions: the tokenizer's image token, or else the vocabulary's last id."""
        vocabulary = self.get_tokenizer().get_vocab()
        return int(vocabulary.get(IMAGE_MARK, self.get_hf_config().vocab_size - 1))

    def pixel_values(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """The images' pixel values, `[N, 3, H, W]`."""
        return pixel_values(self.get_hf_config(), self.ctx.model_config.model, images)


class MoELLaVADummyInputs(BaseDummyInputsBuilder[MoELLaVAProcessingInfo]):
    """The inputs that vLLM measures memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return IMAGE_MARK * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: MultiModalDummyOptions
    ) -> MultiModalDataDict:
        side = self.info.image_size
        images = self._get_dummy_images(
            width=side, height=side, num_images=mm_counts.get("image", 0), overrides=mm_options.get("image")
        )
        return {"image": images}


class MoELLaVAProcessor(BaseMultiModalProcessor[MoELLaVAProcessingInfo]):
    """Makes pixel values of images, and puts placeholders where the images are in the prompt."""

    def get_dummy_inputs(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: MultiModalDummyOptions
    ) -> ProcessorInputs:
        """The inputs that vLLM measures memory with, as the renderer would write them."""
        inputs = super().get_dummy_inputs(seq_len, mm_counts, mm_options)
        return replace(inputs, prompt=[IMAGE_INDEX] * mm_counts.get("image", 0))

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        images: Sequence[Image.Image] = hf_data["images"]  # type: ignore[assignment]
        asked = asked_experts(hf_kwargs, most=getattr(self.info.get_hf_config(), MOST_REQUEST_EXPERTS))
        return image_inputs(self.info.pixel_values(images), asked)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return IMAGE_FIELDS

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        placeholders = [self.info.image_token_id] * self.info.tokens_per_image
        return [PromptReplacement(modality="image", target=[IMAGE_INDEX], replacement=placeholders)]

    def _apply_prompt_updates(
        self, token_ids: list[int], mm_prompt_updates: MultiModalPromptUpdates
    ) -> tuple[list[int], Mapping[str, list[PlaceholderFeaturesInfo]]]:
        """Put each image's placeholders where the renderer has put a mark."""
        images, marks = len(mm_prompt_updates.get("image", [])), token_ids.count(IMAGE_INDEX)
        if images != marks:
            raise ValueError(
                f"The request has {images} images, but its prompt says {IMAGE_MARK} {marks} times: "
                f"write one {IMAGE_MARK} for each image."
            )
        return super()._apply_prompt_updates(token_ids, mm_prompt_updates)
