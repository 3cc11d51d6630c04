"""The config.json of a MoE-LLaVA checkpoint, for each of its three decoders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError
from transformers import PhiConfig, PretrainedConfig

from prismoe.model_plugins.files.weight_files import read_json
from prismoe.model_plugins.routing import ROUTING_KEY
from prismoe.model_plugins.routing.registry import RoutingInForce, choose_routing

Settings = TypeVar("Settings", bound=BaseModel)
Share = Annotated[float, Field(gt=0, le=1)]

MOST_REQUEST_EXPERTS = "prismoe_request_experts"
"""Where a loaded config keeps how many experts a request may ask for; no checkpoint holds it."""


class DecoderSettings(BaseModel):
    """The keys without which no decoder can be built."""

    architectures: Annotated[list[str], Field(min_length=1)]
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    mm_vision_select_layer: int
    rotary_share: Share
    """How much of a head turns with its position. Each family has another key for it."""


class PhiSettings(DecoderSettings):
    """Phi's own; transformers knows Phi, and the defaults of what is left out."""

    max_position_embeddings: PositiveInt
    layer_norm_eps: PositiveFloat
    rotary_share: Share = Field(0.5, alias="partial_rotary_factor")


class StablelmSettings(DecoderSettings):
    """StableLM's own."""

    num_key_value_heads: PositiveInt
    max_position_embeddings: PositiveInt
    norm_eps: PositiveFloat
    rotary_share: Share = Field(alias="rope_pct")
    rope_theta: PositiveFloat
    use_qkv_bias: bool


class QWenSettings(DecoderSettings):
    """Qwen's own."""

    layer_norm_epsilon: PositiveFloat
    no_bias: bool
    rotary_emb_base: PositiveFloat
    rotary_share: Share = Field(alias="rotary_pct")
    seq_length: PositiveInt


SETTINGS: dict[str, type[DecoderSettings]] = {
    "phi": PhiSettings,
    "stablelm": StablelmSettings,
    "qwen": QWenSettings,
}
"""By the family, which ends a checkpoint's model_type."""


def check_keys(config: Mapping[str, Any]) -> None:
    """Raise ValueError with a sentence where config.json lacks a key of its decoder, or has a wrong one."""
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"The checkpoint's config.json gives the model_type {model_type!r}; prismoe serves "
            f"{', '.join(MODEL_TYPES)}."
        )
    decoder = _validated(SETTINGS[model_type.rpartition("_")[2]], config)
    head_size, rest = divmod(decoder.hidden_size, decoder.num_attention_heads)
    if rest:
        raise ValueError(
            f"hidden_size is {decoder.hidden_size} in the checkpoint's config.json, which is no multiple of "
            f"num_attention_heads ({decoder.num_attention_heads})."
        )
    rotated = int(head_size * decoder.rotary_share)
    if rotated < 2 or rotated % 2:
        key = type(decoder).model_fields["rotary_share"].alias
        raise ValueError(
            f"{key} is {decoder.rotary_share:g} in the checkpoint's config.json, which makes {rotated} of "
            f"each head's {head_size} numbers turn with their position: it has to be an even number."
        )


def check_config_file(folder: Path) -> None:
    """Raise ValueError with a sentence where a folder's config.json is missing, damaged or no MoE-LLaVA's."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no config.json, so it is no checkpoint.")
    check_keys(read_json(file))


def _validated(kind: type[Settings], values: object, where: str = "") -> Settings:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = where + ".".join(map(str, fault["loc"]))
        if fault["type"] == "missing":
            raise ValueError(f"The checkpoint's config.json lacks {key}.") from error
        message = fault["msg"][:1].lower() + fault["msg"][1:]
        raise ValueError(
            f"{key} is {fault['input']!r} in the checkpoint's config.json: {message}."
        ) from error


class _CheckedConfig(PretrainedConfig):
    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        check_keys(config_dict)
        return super().from_dict(config_dict, **kwargs)


class MoELLaVAPhiConfig(_CheckedConfig, PhiConfig):
    """A Phi decoder's config with MoE-LLaVA's keys (`moe`, `mm_*`, …) beside Phi's own."""

    model_type = "moe_llava_phi"


class LlavaPhiConfig(MoELLaVAPhiConfig):
    """The same decoder before its layers became experts."""

    model_type = "llava_phi"


class MoELLaVAStablelmConfig(_CheckedConfig):
    """A StableLM decoder's config as it was before transformers had StableLM, with MoE-LLaVA's keys."""

    model_type = "moe_llava_stablelm"


class LlavaStablelmConfig(MoELLaVAStablelmConfig):
    """The same decoder before its layers became experts."""

    model_type = "llava_stablelm"


class MoELLaVAQWenConfig(_CheckedConfig):
    """The config of a Qwen decoder of the first generation, with MoE-LLaVA's keys."""

    model_type = "moe_llava_qwen"


class LlavaQWenConfig(MoELLaVAQWenConfig):
    """The same decoder before its layers became experts."""

    model_type = "llava_qwen"


MODEL_TYPES = [f"{kind}llava_{family}" for family in SETTINGS for kind in ("moe_", "")]


def family(config: PretrainedConfig) -> str:
    """Which of SETTINGS' decoders it is."""
    return str(config.model_type).rpartition("_")[2]


class MoESettings(BaseModel):
    """The keys of a checkpoint's `moe` object that matter when serving; the others are its training's."""

    moe_enable: bool = True
    moe_mode: Literal["first_half", "second_half", "sparse", "dense"] = "sparse"
    moe_layers_idx: list[int] | None = None
    num_experts: list[PositiveInt] = []
    top_k_experts: PositiveInt = 2
    use_residual: bool = False
    expert_width: int | None = None
    """F, where it is not the width of a dense layer. The authors' format has no such key: their experts are
    copies of the dense layer. Fine-grained experts are narrower."""

    def experts_by_layer(self, num_layers: int) -> dict[int, int]:
        """The number of experts of each MoE layer, by the decoder's layer index.

        Raises ValueError for what can't be served.
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
    """The checkpoint's `moe` object; a dense checkpoint has none."""
    return _validated(MoESettings, getattr(config, "moe", {"moe_enable": False}), "moe.")


def dense_width(config: PretrainedConfig) -> int:
    """The width of a dense feed-forward layer; Qwen's config gives it twice over, for both projections."""
    return int(config.intermediate_size) // (2 if family(config) == "qwen" else 1)


def expert_width(config: PretrainedConfig) -> int:
    """F: the width of an expert."""
    return moe_settings(config).expert_width or dense_width(config)


def experts_by_layer(config: PretrainedConfig) -> dict[int, int]:
    """The number of experts of each MoE layer, by the decoder's layer index; none in a dense checkpoint."""
    return moe_settings(config).experts_by_layer(config.num_hidden_layers)


def routing_in_force(config: PretrainedConfig, operator: Mapping[str, Any] | None) -> RoutingInForce:
    """How a checkpoint with this config routes under the operator's setting (None: the checkpoint's own).

    Raises ValueError with a sentence when the settings make no sense for one of its layers.
    """
    experts = experts_by_layer(config)
    if operator is not None and not experts:
        raise ValueError(
            "The checkpoint has no MoE layers, so there is nothing to route: leave --routing out."
        )
    checkpoint = getattr(config, ROUTING_KEY, None)
    return choose_routing(operator, checkpoint, moe_settings(config).top_k_experts, experts)


def check_servable(config: PretrainedConfig) -> None:
    """Raise ValueError with a sentence for a checkpoint that prismoe can't serve right."""
    if getattr(config, "mm_image_tower", None) is None:
        raise ValueError("The checkpoint's config names no image tower (mm_image_tower).")
    if getattr(config, "mm_video_tower", None) is not None:
        raise ValueError("The checkpoint has a video tower (mm_video_tower); prismoe serves images only.")
    if getattr(config, "mm_use_im_start_end", False):
        raise ValueError(
            "The checkpoint marks images with tokens of their own (mm_use_im_start_end), "
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
