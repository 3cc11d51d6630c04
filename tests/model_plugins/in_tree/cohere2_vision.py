"""Cohere's vision model with experts: a renormalised sigmoid, by a function of the model in vLLM."""

from typing import Any

from transformers import (
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
)

from tests.model_plugins.in_tree.tiny_model import BYTES, TinyModel

TOKENS = (
    "<PAD>",
    "<|END_OF_TURN_TOKEN|>",
    "<BOS_TOKEN>",
    "<|START_OF_TURN_TOKEN|>",
    "<|START_OF_IMG|>",
    "<|END_OF_IMG|>",
    "<|IMG_PATCH|>",
    "<|IMG_LINE_BREAK|>",
)
CHAT_TEMPLATE = (
    "<BOS_TOKEN>{% for m in messages %}<|START_OF_TURN_TOKEN|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type in ('image', 'image_url') %}<|IMG_PATCH|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|END_OF_TURN_TOKEN|>"
    "{% endfor %}<|START_OF_TURN_TOKEN|>chatbot\n"
)
SIDE, PATCH, DOWN = 56, 14, 2
"""Pixels of a tile and of a patch, and the patches on each side of a token."""


def config(ids: dict[str, int]) -> Cohere2VisionConfig:
    text: dict[str, Any] = {
        "model_type": "cohere2_moe",
        "architectures": ["Cohere2MoeForCausalLM"],
        "vocab_size": BYTES + len(ids),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "prefix_dense_intermediate_size": 128,
        "sliding_window": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "expert_selection_fn": "sigmoid",
        "max_position_embeddings": 4096,
        "pad_token_id": ids["<PAD>"],
        "bos_token_id": ids["<BOS_TOKEN>"],
        "eos_token_id": ids["<|END_OF_TURN_TOKEN|>"],
    }
    vision: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    return Cohere2VisionConfig(
        text_config=text,
        vision_config=vision,
        downsample_factor=DOWN,
        alignment_intermediate_size=128,
        image_token_id=ids["<|IMG_PATCH|>"],
    )


def processor(tokenizer: Any, chat_template: str) -> Cohere2VisionProcessor:
    """A processor with 4 tokens for each tile."""
    return Cohere2VisionProcessor(
        image_processor=Cohere2VisionImageProcessor(
            size={"height": SIDE, "width": SIDE},
            patch_size=SIDE // PATCH // DOWN,
            max_patches=4,
            crop_to_patches=True,
        ),
        tokenizer=tokenizer,
        chat_template=chat_template,
    )


MODEL = TinyModel(
    architecture=Cohere2VisionForConditionalGeneration,
    config=config,
    tokens=TOKENS,
    tokenizer_settings={
        "bos_token": "<BOS_TOKEN>",
        "extra_special_tokens": {
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "image_token": "<|IMG_PATCH|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        },
    },
    processor=processor,
    chat_template=CHAT_TEMPLATE,
    renamed={"model.vision_tower.": "model.vision_tower.vision_model."},
)
