"""Qwen3-VL without experts, and so without a MoE layer to observe."""

from typing import Any

from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.model_plugins.in_tree.qwen3_vl_moe import (
    CHAT_TEMPLATE,
    DEEPSTACK,
    ROPE,
    TOKENS,
    media_ids,
    processor,
    vision,
)
from tests.model_plugins.in_tree.tiny_model import BYTES, TinyModel


def config(ids: dict[str, int]) -> Qwen3VLConfig:
    text: dict[str, Any] = {
        "vocab_size": BYTES + len(ids),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_parameters": ROPE,
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision() | DEEPSTACK,
        tie_word_embeddings=False,
        **media_ids(ids),
    )


MODEL = TinyModel(
    architecture=Qwen3VLForConditionalGeneration,
    config=config,
    tokens=TOKENS,
    tokenizer_settings={},
    processor=processor,
    chat_template=CHAT_TEMPLATE,
)
