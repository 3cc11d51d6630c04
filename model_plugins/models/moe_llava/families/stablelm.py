"""MoE-LLaVA on StableLM: sequential blocks with LayerNorm, SiLU-gated experts."""

from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from prismoe.model_plugins.models.moe_llava.families.family import (
    DecoderFacts,
    Family,
    FeedForward,
    default_rope,
)
from prismoe.model_plugins.models.moe_llava.families.settings import DecoderConfig, DecoderSettings, Share
from prismoe.model_plugins.models.moe_llava.tokenizers import END_OF_TEXT, RanksTokenizer


class StablelmSettings(DecoderSettings):
    """StableLM's own keys."""

    num_key_value_heads: PositiveInt
    max_position_embeddings: PositiveInt
    norm_eps: PositiveFloat
    rotary_share: Share = Field(alias="rope_pct")
    rope_theta: PositiveFloat
    use_qkv_bias: bool


class MoELLaVAStablelmConfig(DecoderConfig):
    """A StableLM decoder's config from before transformers had StableLM, with MoE-LLaVA's keys."""

    model_type = "moe_llava_stablelm"
    settings = StablelmSettings


class LlavaStablelmConfig(MoELLaVAStablelmConfig):
    """The same decoder before its layers became experts."""

    model_type = "llava_stablelm"


class Arcade100kTokenizer(RanksTokenizer):
    """The tokenizer of StableLM 2 (`arcade100k.tiktoken`, 100,257 ranks)."""

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "arcade100k.tiktoken"}
    special_tokens_in_order = (
        END_OF_TEXT,
        *(f"<|fim_{part}|>" for part in ("prefix", "middle", "suffix", "pad")),
        "<gh_stars>",
        "<filename>",
        *(f"<issue_{part}>" for part in ("start", "comment", "closed")),
        *(f"<jupyter_{part}>" for part in ("start", "text", "code", "output")),
        "<empty_output>",
        *(f"<commit_{part}>" for part in ("before", "msg", "after")),
        "<reponame>",
        "<|endofprompt|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|pause|>",
        *(f"<|reg{index}|>" for index in range(8)),
        "<|extra0|>",
    )


def _decoder(config: Any) -> DecoderFacts:
    return DecoderFacts(
        dense_width=config.intermediate_size,
        kv_heads=config.num_key_value_heads,
        positions=config.max_position_embeddings,
        norm_eps=config.norm_eps,
        rope=default_rope(config.rope_theta, config.rope_pct),
        qkv_bias=config.use_qkv_bias,
        output_bias=False,
    )


STABLELM = Family(
    title="StableLM",
    spelling="Stablelm",
    configs=(MoELLaVAStablelmConfig, LlavaStablelmConfig),
    decoder=_decoder,
    feed_forward=FeedForward("silu", gate="gate_proj", up="up_proj", down="down_proj"),
    tokenizer=Arcade100kTokenizer,
)
