"""InternVL with Qwen3-MoE: a renormalised softmax. A picture is split into tiles and a thumbnail."""

from typing import Any

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

from tests.model_plugins.in_tree.tiny_model import BYTES, TinyModel

TOKENS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|im_start|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<video>",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type in ('image', 'image_url') %}<IMG_CONTEXT>\n"
    "{% elif c.type in ('video', 'video_url') %}<video>\n"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)
SIDE, PATCH = 56, 14
"""Pixels of a tile and of a patch. A token is 2 by 2 patches."""
TOKENS_PER_TILE = (SIDE // PATCH // 2) ** 2


def config(ids: dict[str, int]) -> InternVLConfig:
    text: dict[str, Any] = {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],  # vLLM chooses the decoder by it
        "vocab_size": BYTES + len(ids),
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    vision: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }
    return InternVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<IMG_CONTEXT>"],
        image_seq_length=TOKENS_PER_TILE,
        tie_word_embeddings=False,
    )


def processor(tokenizer: Any, chat_template: str) -> InternVLProcessor:
    """A processor with 1 to 5 tiles for a picture, and one for a frame."""
    size = {"height": SIDE, "width": SIDE}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        video_processor=InternVLVideoProcessor(size=size),
        tokenizer=tokenizer,
        image_seq_length=TOKENS_PER_TILE,
        chat_template=chat_template,
    )


MODEL = TinyModel(
    architecture=InternVLForConditionalGeneration,
    config=config,
    tokens=TOKENS,
    tokenizer_settings={
        "extra_special_tokens": {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    },
    processor=processor,
    chat_template=CHAT_TEMPLATE,
)
SPELLED = {BYTES + TOKENS.index("<video>"): BYTES + TOKENS.index("<IMG_CONTEXT>")}
"""vLLM's token for a video, and the token that transformers has in its place."""
