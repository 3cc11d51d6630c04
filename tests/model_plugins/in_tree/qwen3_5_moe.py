"""Qwen3.5-MoE: a renormalised softmax, a gated shared expert, linear attention in every other layer.

Its dtype is bfloat16, because vLLM's linear attention on CPU does not support float32.
"""

from typing import Any

import torch
from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

from tests.model_plugins.in_tree.qwen3_vl_moe import CHAT_TEMPLATE, TOKENS, media_ids, processor, vision
from tests.model_plugins.in_tree.tiny_model import BYTES, TinyModel


def config(ids: dict[str, int]) -> Qwen3_5MoeConfig:
    text: dict[str, Any] = {
        "vocab_size": BYTES + len(ids),
        "hidden_size": 64,
        "moe_intermediate_size": 96,
        "shared_expert_intermediate_size": 96,
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "linear_key_head_dim": 64,  # the smallest size for vLLM's CPU kernel
        "linear_value_head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    return Qwen3_5MoeConfig(text_config=text, vision_config=vision(), **media_ids(ids))


MODEL = TinyModel(
    architecture=Qwen3_5MoeForConditionalGeneration,
    config=config,
    tokens=TOKENS,
    tokenizer_settings={},
    processor=processor,
    chat_template=CHAT_TEMPLATE,
    dtype=torch.bfloat16,
)
