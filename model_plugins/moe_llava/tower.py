"""Finding the vision tower that a checkpoint names, and its settings."""

from functools import lru_cache
from pathlib import Path

from transformers import CLIPVisionConfig, PretrainedConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


@lru_cache
def find_tower(name: str, checkpoint: str) -> Path:
    """The folder of the tower that `mm_image_tower` names.

    It is looked for as a path, in the checkpoint's folder and beside that.

    Raises FileNotFoundError that says where it was looked for.
    """
    folder = Path(checkpoint)
    candidates = [Path(name), folder / name, folder.parent / name]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(
        f"The checkpoint's vision tower {name!r} was not found (looked for config.json in {looked}). "
        "Put the tower's folder, with config.json and preprocessor_config.json, in one of these places."
    )


@lru_cache
def tower_config(name: str, checkpoint: str) -> CLIPVisionConfig:
    """The settings of a CLIP tower."""
    path = find_tower(name, checkpoint)
    config = CLIPVisionConfig.from_pretrained(path)
    if config.model_type != "clip_vision_model":
        raise ValueError(
            f"The vision tower in {path} is a {config.model_type!r}; prismoe serves CLIP towers."
        )
    return config


@lru_cache
def tower_image_processor(name: str, checkpoint: str) -> CLIPImageProcessorPil:
    """The tower's image processor, in the form that resizes with Pillow as the authors' code does."""
    return CLIPImageProcessorPil.from_pretrained(find_tower(name, checkpoint))


def drops_cls(config: PretrainedConfig) -> bool:
    """Whether the tower's CLS token is left out (`mm_vision_select_feature`)."""
    feature = getattr(config, "mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):
        raise ValueError(
            f"mm_vision_select_feature is {feature!r} in the checkpoint's config; "
            "it must be 'patch' or 'cls_patch'."
        )
    return bool(feature == "patch")


def tokens_per_image(config: PretrainedConfig, checkpoint: str) -> int:
    """How many tokens an image becomes: its patches, and CLS where it is kept."""
    vision = tower_config(config.mm_image_tower, checkpoint)
    return (vision.image_size // vision.patch_size) ** 2 + (0 if drops_cls(config) else 1)
