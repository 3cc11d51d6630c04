"""Llama 4: one expert by its logit's sigmoid, which weighs the expert's input. Every other layer is dense."""

from typing import Any

from transformers import (
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4ImageProcessor,
    Llama4Processor,
)

from tests.model_plugins.in_tree.tiny_model import BYTES, TinyModel

TOKENS = (
    "<|finetune_right_pad|>",
    "<|eot|>",
    "<|begin_of_text|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|image|>",
    "<|patch|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
)
CHAT_TEMPLATE = (
    "<|begin_of_text|>{% for m in messages %}<|header_start|>{{ m.role }}<|header_end|>\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type in ('image', 'image_url') %}<|image|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|eot|>"
    "{% endfor %}<|header_start|>assistant<|header_end|>\n"
)
SIDE, PATCH = 56, 14
"""Pixels of a tile and of a patch. A token is 2 by 2 patches."""


def config(ids: dict[str, int]) -> Llama4Config:
    text: dict[str, Any] = {
        "vocab_size": BYTES + len(ids),
        "hidden_size": 64,
        "intermediate_size": 96,
        "intermediate_size_mlp": 128,
        "num_hidden_layers": 4,
        "interleave_moe_layer_step": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 1,
        "max_position_embeddings": 4096,
        "pad_token_id": ids["<|finetune_right_pad|>"],
        "eos_token_id": ids["<|eot|>"],
        "bos_token_id": ids["<|begin_of_text|>"],
    }
    vision: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "vision_output_dim": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    return Llama4Config(
        text_config=text,
        vision_config=vision,
        image_token_index=ids["<|patch|>"],
        boi_token_index=ids["<|image_start|>"],
        eoi_token_index=ids["<|image_end|>"],
    )


def processor(tokenizer: Any, chat_template: str) -> Llama4Processor:
    """A processor with 1 to 5 tiles for a picture, 4 tokens each, and separators between them."""
    return Llama4Processor(
        image_processor=Llama4ImageProcessor(size={"height": SIDE, "width": SIDE}, max_patches=4),
        tokenizer=tokenizer,
        patch_size=PATCH,
        chat_template=chat_template,
    )


MODEL = TinyModel(
    architecture=Llama4ForConditionalGeneration,
    config=config,
    tokens=TOKENS,
    tokenizer_settings={"bos_token": "<|begin_of_text|>"},
    processor=processor,
    chat_template=CHAT_TEMPLATE,
)
