"""Qwen3-VL-MoE: a renormalised softmax. Embeddings of deeper vision layers are added in the first layers."""

from typing import Any

from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.model_plugins.in_tree.tiny_model import BYTES, TinyModel

TOKENS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type in ('video', 'video_url') %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
DEEPSTACK = {"deepstack_visual_indexes": [0, 1]}


def config(ids: dict[str, int], **changes: Any) -> Qwen3VLMoeConfig:
    """The model's config, with `changes` to the decoder."""
    text: dict[str, Any] = {
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
        "norm_topk_prob": True,  # vLLM reads this; transformers always does it
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "rope_parameters": ROPE,
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    } | changes
    tower = vision() | DEEPSTACK | {"out_hidden_size": text["hidden_size"]}
    return Qwen3VLMoeConfig(text_config=text, vision_config=tower, **media_ids(ids))


def vision() -> dict[str, Any]:
    """The config of the smallest tower with all parts of the class."""
    return {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "num_position_embeddings": 64,
        "out_hidden_size": 64,
        "patch_size": 16,
    }


def media_ids(ids: dict[str, int]) -> dict[str, int]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def processor(tokenizer: Any, chat_template: str) -> Qwen3VLProcessor:
    """A processor with 4 to 16 tokens for an image; a token is 32 pixels wide.

    Normalisation is as released.
    """
    alike = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            size={"shortest_edge": 4 * 32**2, "longest_edge": 16 * 32**2}, **alike
        ),
        video_processor=Qwen3VLVideoProcessor(
            size={"shortest_edge": 4 * 32**2, "longest_edge": 64 * 32**2}, cap_pixels_per_frame=False, **alike
        ),
        tokenizer=tokenizer,
        chat_template=chat_template,
    )


MODEL = TinyModel(
    architecture=Qwen3VLMoeForConditionalGeneration,
    config=config,
    tokens=TOKENS,
    tokenizer_settings={},
    processor=processor,
    chat_template=CHAT_TEMPLATE,
    transposed=".mlp.experts.",
)
