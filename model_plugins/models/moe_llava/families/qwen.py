"""MoE-LLaVA on Qwen of the first generation: sequential blocks with RMSNorm, SiLU-gated experts."""

from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from prismoe.model_plugins.models.moe_llava.families.family import (
    DecoderFacts,
    Family,
    FeedForward,
    Layout,
    default_rope,
)
from prismoe.model_plugins.models.moe_llava.families.settings import DecoderConfig, DecoderSettings, Share
from prismoe.model_plugins.models.moe_llava.tokenizers import END_OF_TEXT, RanksTokenizer


class QWenSettings(DecoderSettings):
    """Qwen's own keys."""

    layer_norm_epsilon: PositiveFloat
    no_bias: bool
    rotary_emb_base: PositiveFloat
    rotary_share: Share = Field(alias="rotary_pct")
    seq_length: PositiveInt


class MoELLaVAQWenConfig(DecoderConfig):
    """The config of a Qwen decoder of the first generation, with MoE-LLaVA's keys."""

    model_type = "moe_llava_qwen"
    settings = QWenSettings


class LlavaQWenConfig(MoELLaVAQWenConfig):
    """The same decoder before its layers became experts."""

    model_type = "llava_qwen"


class QWenTokenizer(RanksTokenizer):
    """The tokenizer of Qwen's first generation (`qwen.tiktoken`, 151,643 ranks)."""

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "qwen.tiktoken"}
    special_tokens_in_order = (
        END_OF_TEXT,
        "<|im_start|>",
        "<|im_end|>",
        *(f"<|extra_{index}|>" for index in range(205)),
    )


def _decoder(config: Any) -> DecoderFacts:
    """Read the facts of a decoder from its config.

    Qwen's dynamic NTK and log-n attention only act beyond `seq_length` positions, and vLLM's max_model_len
    stays within those.
    """
    return DecoderFacts(
        dense_width=config.intermediate_size // 2,  # The config counts both inner projections.
        kv_heads=config.num_attention_heads,
        positions=config.seq_length,
        norm_eps=config.layer_norm_epsilon,
        rope=default_rope(config.rotary_emb_base, config.rotary_pct),
        qkv_bias=True,
        output_bias=not config.no_bias,
    )


QWEN = Family(
    title="Qwen-1",
    spelling="QWen",
    configs=(MoELLaVAQWenConfig, LlavaQWenConfig),
    decoder=_decoder,
    layout=Layout(
        trunk="transformer",
        embedding="wte",
        layers="h",
        final_norm="ln_f",
        block_norms=("ln_1", "ln_2"),
        attention="attn",
        attention_output="c_proj",
        fused_qkv="c_attn",
    ),
    feed_forward=FeedForward("silu", gate="w2", up="w1", down="c_proj"),
    has_rms_norm=True,
    tokenizer=QWenTokenizer,
)
