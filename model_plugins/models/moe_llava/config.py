"""The config.json of a MoE-LLaVA checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, PositiveInt
from transformers import PretrainedConfig

from prismoe.model_plugins.files.weight_files import read_json
from prismoe.model_plugins.models.moe_llava.families import BY_MODEL_TYPE, FAMILIES, family_of
from prismoe.model_plugins.models.moe_llava.families.settings import check_settings, validated
from prismoe.model_plugins.routing import ROUTING_KEY
from prismoe.model_plugins.routing.calibrated import Calibrated
from prismoe.model_plugins.routing.registry import RoutingInForce, choose_routing

MOST_REQUEST_EXPERTS = "prismoe_request_experts"
"""The attribute of a loaded config with the most experts that a request may ask for; not in checkpoints."""


ARCHITECTURES = {architecture for family in FAMILIES for architecture in family.architectures}


def is_moe_llava(config: Mapping[str, Any]) -> bool:
    """Whether a config.json belongs to a MoE-LLaVA checkpoint, complete or not."""
    named = config.get("architectures")
    return config.get("model_type") in BY_MODEL_TYPE or (
        isinstance(named, list) and not ARCHITECTURES.isdisjoint(named)
    )


def check_keys(config: Mapping[str, Any]) -> None:
    """Raise ValueError where config.json lacks a key of its decoder, or has a wrong value for one."""
    model_type = config.get("model_type")
    if model_type not in BY_MODEL_TYPE:
        raise ValueError(
            f"The checkpoint's config.json gives the model_type {model_type!r}; prismoe serves "
            f"{', '.join(BY_MODEL_TYPE)}."
        )
    check_settings(BY_MODEL_TYPE[model_type].configs[0].settings, config)


def check_config_file(folder: Path) -> None:
    """Raise ValueError where a folder's config.json is missing, damaged or not MoE-LLaVA's."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no config.json, so it is not a checkpoint.")
    check_keys(read_json(file))


class MoESettings(BaseModel):
    """The keys of a checkpoint's `moe` object that serving uses; the others are for training."""

    moe_enable: bool = True
    moe_mode: Literal["first_half", "second_half", "sparse", "dense"] = "sparse"
    moe_layers_idx: list[int] | None = None
    num_experts: list[PositiveInt] = []
    top_k_experts: PositiveInt = 2
    use_residual: bool = False
    expert_width: int | None = None
    """F, where it differs from the width of a dense layer, as with fine-grained experts, which are narrower.
    The authors' format has no such key: its experts are copies of the dense layer."""

    def experts_by_layer(self, num_layers: int) -> dict[int, int]:
        """The number of experts of each MoE layer, by the decoder's layer index.

        Raises ValueError where the settings contradict each other or the decoder.
        """
        if not self.moe_enable:
            return {}
        layers = self.moe_layers_idx
        if layers is None:
            layers = list(_LAYERS_OF_MODE[self.moe_mode](num_layers))
        if sorted(set(layers) & set(range(num_layers))) != sorted(layers):
            raise ValueError(
                f"The checkpoint's config makes experts of layers {layers}, but has layers 0 to "
                f"{num_layers - 1}: correct moe.moe_layers_idx in config.json."
            )
        counts = self.num_experts * (len(layers) if len(self.num_experts) == 1 else 1)
        if len(counts) != len(layers):
            raise ValueError(
                f"The checkpoint's config names {len(layers)} MoE layers but gives "
                f"{len(counts)} numbers of experts: correct moe.num_experts in config.json."
            )
        return dict(zip(layers, counts, strict=True))


_LAYERS_OF_MODE = {
    "first_half": lambda layers: range(layers // 2),
    "second_half": lambda layers: range(layers // 2, layers),
    "sparse": lambda layers: range(0, layers, 2),
    "dense": lambda layers: range(layers),
}


def moe_settings(config: PretrainedConfig) -> MoESettings:
    """The checkpoint's `moe` object; a dense checkpoint has none, and gets disabled settings."""
    return validated(MoESettings, getattr(config, "moe", {"moe_enable": False}), "moe.")


def expert_width(config: PretrainedConfig) -> int:
    """F: the width of an expert."""
    return moe_settings(config).expert_width or family_of(config).decoder(config).dense_width


def experts_by_layer(config: PretrainedConfig) -> dict[int, int]:
    """The number of experts of each MoE layer, by the decoder's layer index; none in a dense checkpoint."""
    return moe_settings(config).experts_by_layer(config.num_hidden_layers)


def routing_in_force(config: PretrainedConfig, operator: Mapping[str, Any] | None) -> RoutingInForce:
    """The routing of a checkpoint with this config under the operator's setting (None: the checkpoint's own).

    Raises ValueError where the settings don't fit one of its layers.
    """
    experts = experts_by_layer(config)
    if operator is not None and (calibrated_for := Calibrated.model_of(operator)) is not None:
        raise ValueError(
            f"The routing settings were calibrated for another model ({calibrated_for}): leave them out. "
            "prismoe calibrate writes a MoE-LLaVA's into its checkpoint."
        )
    if operator is not None and not experts:
        raise ValueError(
            "The checkpoint has no MoE layers, so there is nothing to route: leave --routing out."
        )
    checkpoint = getattr(config, ROUTING_KEY, None)
    return choose_routing(operator, checkpoint, moe_settings(config).top_k_experts, experts)


def check_servable(config: PretrainedConfig) -> None:
    """Raise ValueError for a checkpoint that prismoe can't serve correctly."""
    if getattr(config, "mm_image_tower", None) is None:
        raise ValueError("The checkpoint's config names no image tower (mm_image_tower).")
    if getattr(config, "mm_video_tower", None) is not None:
        raise ValueError("The checkpoint has a video tower (mm_video_tower); prismoe serves images only.")
    if getattr(config, "mm_use_im_start_end", False):
        raise ValueError(
            "The checkpoint marks images with special tokens (mm_use_im_start_end), "
            "which prismoe does not serve."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            "The checkpoint's weights are quantised already (quantization_config in its config.json); "
            "prismoe serves full-precision checkpoints."
        )
    projector = getattr(config, "image_projector_type", "mlp2x_gelu")
    if projector != "mlp2x_gelu":
        raise ValueError(f"The checkpoint's projector is {projector!r}; prismoe serves 'mlp2x_gelu'.")
