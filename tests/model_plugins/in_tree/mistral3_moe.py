"""Mistral 3 with a Mixtral decoder: a renormalised softmax. Each row of an image ends with a text token."""

from typing import Any

from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
)

from tests.model_plugins.in_tree.tiny_model import BYTES, TinyModel

TOKENS = ("<pad>", "</s>", "<s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
CHAT_TEMPLATE = (
    "<s>{% for m in messages %}[INST]"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type in ('image', 'image_url') %}[IMG]"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}[/INST]"
    "{% endfor %}"
)
PATCH, MERGED = 14, 2
"""Pixels of a patch, and the patches on each side of a token."""


def config(ids: dict[str, int]) -> Mistral3Config:
    text: dict[str, Any] = {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "vocab_size": BYTES + len(ids),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
    }
    vision: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 32,
        "image_size": 8 * PATCH,
        "patch_size": PATCH,
        "hidden_act": "silu",
    }
    return Mistral3Config(
        text_config=text,
        vision_config=vision,
        image_token_index=ids["[IMG]"],
        spatial_merge_size=MERGED,
        tie_word_embeddings=False,
    )


def processor(tokenizer: Any, chat_template: str) -> PixtralProcessor:
    """A processor with at most 16 tokens for an image."""
    return PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 8 * PATCH}, patch_size=PATCH),
        tokenizer=tokenizer,
        patch_size=PATCH,
        spatial_merge_size=MERGED,
        chat_template=chat_template,
    )


MODEL = TinyModel(
    architecture=Mistral3ForConditionalGeneration,
    config=config,
    tokens=TOKENS,
    tokenizer_settings={"bos_token": "<s>"},
    processor=processor,
    chat_template=CHAT_TEMPLATE,
)
