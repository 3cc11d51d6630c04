"""The config.json of a MoE-LLaVA checkpoint, for each of its three decoders."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from transformers import PhiConfig, PretrainedConfig

from prismoe.model_plugins.routing import ROUTING_KEY
from prismoe.model_plugins.routing.registry import RoutingInForce, choose_routing

MOST_REQUEST_EXPERTS = "prismoe_request_experts"
"""Where a loaded config keeps how many experts a request may ask for; no checkpoint holds it."""


class MoELLaVAPhiConfig(PhiConfig):
    """A Phi decoder's config with MoE-LLaVA's keys (`moe`, `mm_*`, …) beside Phi's own."""

    model_type = "moe_llava_phi"


class LlavaPhiConfig(MoELLaVAPhiConfig):
    """The same decoder before its layers became experts."""

    model_type = "llava_phi"


class MoELLaVAStablelmConfig(PretrainedConfig):
    """A StableLM decoder's config as it was before transformers had StableLM, with MoE-LLaVA's keys."""

    model_type = "moe_llava_stablelm"


class LlavaStablelmConfig(MoELLaVAStablelmConfig):
    """The same decoder before its layers became experts."""

    model_type = "llava_stablelm"


class MoELLaVAQWenConfig(PretrainedConfig):
    """The config of a Qwen decoder of the first generation, with MoE-LLaVA's keys."""

    model_type = "moe_llava_qwen"


class LlavaQWenConfig(MoELLaVAQWenConfig):
    """The same decoder before its layers became experts."""

    model_type = "llava_qwen"


class MoESettings(BaseModel):
    """The keys of a checkpoint's `moe` object that matter when serving; the others are its training's."""

    moe_enable: bool = True
    moe_mode: Literal["first_half", "second_half", "sparse", "dense"] = "sparse"
    moe_layers_idx: list[int] | None = None
    num_experts: list[int] = []
    top_k_experts: int = 2
    use_residual: bool = False

    def experts_by_layer(self, num_layers: int) -> dict[int, int]:
        """The number of experts of each MoE layer, by the decoder's layer index.

        Raises ValueError for what can't be served.
        """
        if not self.moe_enable:
            return {}
        layers = self.moe_layers_idx
        if layers is None:
            layers = list(_LAYERS_OF_MODE[self.moe_mode](num_layers))
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
    return MoESettings.model_validate(getattr(config, "moe", {"moe_enable": False}))


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
    projector = getattr(config, "image_projector_type", "mlp2x_gelu")
    if projector != "mlp2x_gelu":
        raise ValueError(f"The checkpoint's projector is {projector!r}; prismoe serves 'mlp2x_gelu'.")
