"""MoE-LLaVA on Qwen 1.5 and Qwen 2, which share a decoder: RMSNorm, grouped queries, SiLU-gated experts.

Qwen 1.5 is the authors' own variant, Qwen 2 is the variant of IDA-MoE's code.
"""

from dataclasses import replace
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt
from transformers import Qwen2Config

from prismoe.model_plugins.models.moe_llava.families.family import DecoderFacts, Family, FeedForward
from prismoe.model_plugins.models.moe_llava.families.settings import DecoderConfig, DecoderSettings, Share


class Qwen2Settings(DecoderSettings):
    """Qwen 2's own keys."""

    num_key_value_heads: PositiveInt
    max_position_embeddings: PositiveInt
    rms_norm_eps: PositiveFloat
    rotary_share: Share = Field(1.0, alias="partial_rotary_factor")


class MoELLaVAQWen2Config(DecoderConfig, Qwen2Config):
    """A Qwen 2 decoder's config with MoE-LLaVA's keys beside Qwen's own."""

    model_type = "moe_llava_qwen2"
    settings = Qwen2Settings


class MoELLaVAQwen1_5Config(MoELLaVAQWen2Config):
    """A Qwen 1.5 decoder's config with MoE-LLaVA's keys beside Qwen's own."""

    model_type = "moe_llava_qwen1_5"


class LlavaQwen1_5Config(MoELLaVAQWen2Config):
    """The config of a Qwen 1.5 decoder before its layers became experts."""

    model_type = "llava_qwen1_5"


def _decoder(config: Any) -> DecoderFacts:
    if config.use_sliding_window or config.hidden_act != "silu":
        raise ValueError(
            f"The checkpoint's Qwen decoder has use_sliding_window {config.use_sliding_window} and "
            f"hidden_act {config.hidden_act!r}; prismoe serves false and 'silu'."
        )
    return DecoderFacts(
        dense_width=config.intermediate_size,
        kv_heads=config.num_key_value_heads,
        positions=config.max_position_embeddings,
        norm_eps=config.rms_norm_eps,
        rope=config.rope_parameters,
        qkv_bias=True,
        output_bias=False,
        ties_embeddings=config.tie_word_embeddings,
    )


QWEN2 = Family(
    title="Qwen2",
    spelling="QWen2",
    # No config of dense models: other projects' models use the name llava_qwen2.
    configs=(MoELLaVAQWen2Config,),
    decoder=_decoder,
    feed_forward=FeedForward("silu", gate="gate_proj", up="up_proj", down="down_proj"),
    has_rms_norm=True,
)
QWEN1_5 = replace(
    QWEN2, title="Qwen1.5", spelling="Qwen1_5", configs=(MoELLaVAQwen1_5Config, LlavaQwen1_5Config)
)
