"""Describes a checkpoint from its files, without an engine."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from prismoe.model_plugins.files.weight_files import weight_files
from prismoe.model_plugins.models.moe_llava.config import check_servable, experts_by_layer, moe_settings
from prismoe.model_plugins.models.moe_llava.families import family_of
from prismoe.model_plugins.models.moe_llava.tower import find_tower, tokens_per_image, tower_config
from prismoe.model_plugins.plugin import register
from prismoe.model_plugins.tools.lazy_tensors import DTYPE_NAMES, lazy_tensors


@dataclass(frozen=True)
class Decoder:
    """The language model's sizes."""

    layers: int
    hidden_size: int
    attention_heads: int
    vocabulary: int
    positions: int


@dataclass(frozen=True)
class Tower:
    """The image tower, and the size of an image."""

    name: str
    folder: str
    kind: str
    image_size: int
    select_layer: int
    tokens_per_image: int
    image_aspect_ratio: str


@dataclass(frozen=True)
class Tokenizer:
    """The loaded tokenizer."""

    kind: str
    tokens: int


@dataclass(frozen=True)
class Experts:
    """The MoE layers: the number of experts by the decoder's layer index, and k."""

    by_layer: dict[int, int]
    top_k: int
    residual: bool


@dataclass(frozen=True)
class Weights:
    """The tensors in the files; `dtypes` counts them by safetensors' name of their dtype."""

    files: list[str]
    tensors: int
    parameters: int
    bytes: int
    dtypes: dict[str, int]


@dataclass(frozen=True)
class CheckpointFacts:
    """Everything that the report says about a checkpoint's files."""

    model: str
    family: str
    architecture: str
    decoder: Decoder
    tower: Tower
    tokenizer: Tokenizer | None
    experts: Experts
    weights: Weights

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def checkpoint_facts(folder: Path) -> CheckpointFacts:
    """Read the facts. Raises ValueError or OSError where prismoe can't serve the checkpoint."""
    weights = _weights(folder)
    register()
    config = AutoConfig.from_pretrained(folder)
    check_servable(config)
    tower = tower_config(config.mm_image_tower, str(folder))
    family, moe = family_of(config), moe_settings(config)
    return CheckpointFacts(
        model=str(folder),
        family=family.title,
        architecture=", ".join(config.architectures),
        decoder=Decoder(
            layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            attention_heads=config.num_attention_heads,
            vocabulary=config.vocab_size,
            positions=family.decoder(config).positions,
        ),
        tower=Tower(
            name=config.mm_image_tower,
            folder=str(find_tower(config.mm_image_tower, str(folder))),
            kind=tower.model_type.removesuffix("_vision_model"),
            image_size=tower.image_size,
            select_layer=config.mm_vision_select_layer,
            tokens_per_image=tokens_per_image(config, str(folder)),
            image_aspect_ratio=getattr(config, "image_aspect_ratio", None) or "square",
        ),
        tokenizer=_tokenizer(folder),
        experts=Experts(experts_by_layer(config), moe.top_k_experts, moe.use_residual),
        weights=weights,
    )


def _tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer; None where none can be loaded."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, TypeError, KeyError):
        return None
    return Tokenizer(type(tokenizer).__name__, len(tokenizer))


def _weights(folder: Path) -> Weights:
    tensors = lazy_tensors(folder).values()
    return Weights(
        files=[file.name for file in weight_files(folder)],
        tensors=len(tensors),
        parameters=sum(tensor.count for tensor in tensors),
        bytes=sum(tensor.size for tensor in tensors),
        dtypes=dict(Counter(DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)) for tensor in tensors)),
    )
