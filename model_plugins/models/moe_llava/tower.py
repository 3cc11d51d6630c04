"""Finds the image tower that a checkpoint names (CLIP or SigLIP), reads its settings, builds its module."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import TypeAlias

from torch import Tensor
from transformers import BaseImageProcessor, CLIPVisionConfig, PretrainedConfig, SiglipVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from vllm.model_executor.models.clip import CLIPVisionModel
from vllm.model_executor.models.siglip import SiglipVisionModel
from vllm.model_executor.models.utils import get_layer_index

from prismoe.model_plugins.files.hub import checkpoint_folder, files_from_hub, hub_name
from prismoe.model_plugins.files.weight_files import (
    Shape,
    read_json,
    stored_shapes,
    stored_tensors,
    weight_files,
)
from prismoe.model_plugins.models.patch_grid import PatchGrid

TowerConfig: TypeAlias = CLIPVisionConfig | SiglipVisionConfig


TOWER_FILES = ("config.json", "preprocessor_config.json")


@lru_cache
def find_tower(name: str, checkpoint: str) -> Path:
    """The folder of the tower that `mm_image_tower` names, with its settings, but maybe without its weights.

    It is searched for in the checkpoint's folder and next to it, by its name and by the name's last part (the
    name may be a path on another machine), then as a path, in the local hub cache and on the Hub. Raises
    FileNotFoundError with a message for the user.
    """
    folder = Path(checkpoint).absolute()
    last = PureWindowsPath(name).name  # It accepts both kinds of slashes.
    around = [place / part for part in (name, last) for place in (folder, folder.parent)]
    places = dict.fromkeys([*around, Path(name).absolute()])
    for place in places:
        if all((place / file).is_file() for file in TOWER_FILES):
            return place
    files = " and ".join(TOWER_FILES)
    looked = f"None of these folders holds {files}: {', '.join(map(str, places))}."
    advice = f"Put the tower's folder beside the checkpoint, as {folder.parent / last}"
    if hub := hub_name(name):
        try:
            return files_from_hub(hub, TOWER_FILES)
        except ValueError as error:
            looked += f" {hub} is not available from the Hugging Face Hub: {error}."
        advice = f"Fetch it with `hf download {hub}`, or put its folder beside the checkpoint"
    raise FileNotFoundError(f"The checkpoint's image tower {name!r} was not found. {looked} {advice}.")


def find_whole_tower(name: str, checkpoint: str) -> Path:
    """The tower's folder with its weights, too. Raises ValueError where it has none."""
    folder = find_tower(name, checkpoint)
    try:
        weight_files(folder)
    except ValueError:
        if hub := hub_name(name):
            return checkpoint_folder(hub)
        raise
    return folder


def _tower_family(path: Path) -> str:
    model_type = str(read_json(path / "config.json").get("model_type"))
    for family in ("clip", "siglip"):
        if model_type in (family, f"{family}_vision_model"):
            return family
    raise ValueError(f"The image tower in {path} is a {model_type!r}; prismoe serves CLIP and SigLIP towers.")


@lru_cache
def tower_config(name: str, checkpoint: str) -> TowerConfig:
    """The settings of the tower's network."""
    path = find_tower(name, checkpoint)
    kind = CLIPVisionConfig if _tower_family(path) == "clip" else SiglipVisionConfig
    return kind.from_pretrained(path)


@lru_cache
def tower_image_processor(name: str, checkpoint: str) -> BaseImageProcessor:
    """The tower's image processor, in the form that resizes with Pillow, as in the authors' code."""
    path = find_tower(name, checkpoint)
    kind = CLIPImageProcessorPil if _tower_family(path) == "clip" else SiglipImageProcessorPil
    return kind.from_pretrained(path)


def make_tower(vision: TowerConfig, select_layer: int) -> CLIPVisionModel | SiglipVisionModel:
    """The tower up to the layer whose output is used (`mm_vision_select_layer`; -2 is the last but one)."""
    kind = CLIPVisionModel if isinstance(vision, CLIPVisionConfig) else SiglipVisionModel
    layers = get_layer_index(select_layer, vision.num_hidden_layers)
    return kind(vision, num_hidden_layers_override=layers, require_post_norm=False, prefix="image_tower")


VISION = "vision_model."
"""The prefix of a tower's weights; a complete CLIP or SigLIP has other prefixes for the text model."""


def tower_shapes(folder: Path) -> dict[str, Shape]:
    """The shapes of the tensors in a tower's own folder, by the names that `tower_weights` gives them."""
    return {name: shape for name, shape in stored_shapes(folder).items() if name.startswith(VISION)}


def tower_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The weights in a tower's own folder, for checkpoints without tower weights."""
    return stored_tensors(folder, VISION)


def drops_first_token(config: PretrainedConfig) -> bool:
    """Whether the tower's first output is left out (`mm_vision_select_feature`).

    That output is CLIP's class token. SigLIP has none, so the authors' code loses the first patch. prismoe
    does the same, since their checkpoints were trained that way.
    """
    feature = getattr(config, "mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise ValueError(
            f"mm_vision_select_feature is {feature!r} in the checkpoint's config; "
            "it must be 'patch' or 'cls_patch'."
        )
    return bool(feature == "patch")


def patch_grid(config: PretrainedConfig, checkpoint: str) -> PatchGrid:
    """The grid of an image's tokens on the picture."""
    vision = tower_config(config.mm_image_tower, checkpoint)
    processor = tower_image_processor(config.mm_image_tower, checkpoint)
    side: int = vision.image_size // vision.patch_size
    class_tokens = 1 if isinstance(vision, CLIPVisionConfig) else 0
    dropped = 1 if drops_first_token(config) else 0
    pads = getattr(config, "image_aspect_ratio", None) == "pad"
    crops = getattr(processor, "do_center_crop", False)
    return PatchGrid(
        rows=side,
        columns=side,
        tokens=side**2 + class_tokens - dropped,
        first_patch=dropped - class_tokens,
        fit="pad" if pads else "crop" if crops else "stretch",
    )


def tokens_per_image(config: PretrainedConfig, checkpoint: str) -> int:
    """The number of tokens of an image."""
    return patch_grid(config, checkpoint).tokens
