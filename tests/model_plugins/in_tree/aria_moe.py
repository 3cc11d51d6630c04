"""Aria: its softmax over the chosen logits equals a renormalised softmax; shared experts; images only."""

from typing import Any

from transformers import AriaConfig, AriaForConditionalGeneration, AriaImageProcessor, AriaProcessor

from tests.model_plugins.in_tree.tiny_model import BYTES, TinyModel

TOKENS = ("<pad>", "<|im_end|>", "<|im_start|>", "<unk>", "<fim_prefix>", "<fim_suffix>", "<|img|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type in ('image', 'image_url') %}<fim_prefix><|img|><fim_suffix>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)
SIDE, PATCH, TOKENS_PER_IMAGE = 980, 70, 12
"""The image size in pixels. The processor makes no smaller images."""


def config(ids: dict[str, int]) -> AriaConfig:
    text: dict[str, Any] = {
        "model_type": "aria_text",
        "vocab_size": BYTES + len(ids),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "moe_num_experts": 8,
        "moe_topk": 2,
        "moe_num_shared_experts": 1,
        "max_position_embeddings": 4096,
        "pad_token_id": ids["<pad>"],
        "eos_token_id": ids["<|im_end|>"],
        "bos_token_id": None,
    }
    vision: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    return AriaConfig(
        text_config=text,
        vision_config=vision,
        projector_patch_to_query_dict={(SIDE // PATCH) ** 2: TOKENS_PER_IMAGE},
        image_token_index=ids["<|img|>"],
    )


def processor(tokenizer: Any, chat_template: str) -> AriaProcessor:
    return AriaProcessor(
        image_processor=AriaImageProcessor(max_image_size=SIDE, min_image_size=SIDE),
        tokenizer=tokenizer,
        chat_template=chat_template,
        size_conversion={SIDE: TOKENS_PER_IMAGE},
    )


MODEL = TinyModel(
    architecture=AriaForConditionalGeneration,
    config=config,
    tokens=TOKENS,
    tokenizer_settings={"unk_token": "<unk>", "extra_special_tokens": {"image_token": "<|img|>"}},
    processor=processor,
    chat_template=CHAT_TEMPLATE,
)
