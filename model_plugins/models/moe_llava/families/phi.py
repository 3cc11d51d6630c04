"""MoE-LLaVA on Phi-2: parallel blocks, biased projections, experts around a tanh-approximated GELU."""

from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt
from transformers import PhiConfig

from prismoe.model_plugins.models.moe_llava.families.family import DecoderFacts, Family, FeedForward, Layout
from prismoe.model_plugins.models.moe_llava.families.settings import DecoderConfig, DecoderSettings, Share


class PhiSettings(DecoderSettings):
    """Phi's own keys. transformers has Phi, and fills in the defaults of omitted keys."""

    max_position_embeddings: PositiveInt
    layer_norm_eps: PositiveFloat
    rotary_share: Share = Field(0.5, alias="partial_rotary_factor")


class MoELLaVAPhiConfig(DecoderConfig, PhiConfig):
    """A Phi decoder's config with MoE-LLaVA's keys (`moe`, `mm_*`, …) beside Phi's own."""

    model_type = "moe_llava_phi"
    settings = PhiSettings


class LlavaPhiConfig(MoELLaVAPhiConfig):
    """The same decoder before its layers became experts."""

    model_type = "llava_phi"


def _decoder(config: Any) -> DecoderFacts:
    if config.qk_layernorm or config.hidden_act != "gelu_new":
        raise ValueError(
            f"The checkpoint's Phi decoder has qk_layernorm {config.qk_layernorm} and hidden_act "
            f"{config.hidden_act!r}; prismoe serves false and 'gelu_new'."
        )
    return DecoderFacts(
        dense_width=config.intermediate_size,
        kv_heads=config.num_key_value_heads,
        positions=config.max_position_embeddings,
        norm_eps=config.layer_norm_eps,
        rope=config.rope_parameters,
        qkv_bias=True,
        output_bias=True,
    )


PHI = Family(
    title="Phi-2",
    spelling="Phi",
    configs=(MoELLaVAPhiConfig, LlavaPhiConfig),
    decoder=_decoder,
    layout=Layout(final_norm="final_layernorm", block_norms=("input_layernorm",), attention_output="dense"),
    feed_forward=FeedForward("gelu_tanh_no_mul", gate=None, up="fc1", down="fc2", has_bias=True),
)
