"""Gemma 4 with experts: a renormalised softmax over its own norm, times a learned scale for each expert.

Each layer also has a dense MLP beside the experts, and the last layer attends without a window.
"""

from typing import Any

from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
)

from tests.model_plugins.in_tree.tiny_model import BYTES, TinyModel

TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<|turn>",
    "<turn|>",
    "<|image>",
    "<image|>",
    "<|image|>",
    "<|video|>",
    "<|audio>",
    "<audio|>",
    "<|audio|>",
)
CHAT_TEMPLATE = (
    "<bos>{% for m in messages %}<|turn>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type in ('image', 'image_url') %}<|image|>"
    "{% elif c.type in ('video', 'video_url') %}<|video|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<turn|>\n"
    "{% endfor %}<|turn>model\n"
)
TOKENS_PER_IMAGE = 70
"""The most tokens of an image: the processors' minimum."""
PATCH, POOL = 4, 3


def config(ids: dict[str, int]) -> Gemma4Config:
    text: dict[str, Any] = {
        "vocab_size": BYTES + len(ids),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "global_head_dim": 64,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 2,
        "moe_intermediate_size": 96,
        "max_position_embeddings": 4096,
        "final_logit_softcapping": 30.0,
        "pad_token_id": ids["<pad>"],
        "eos_token_id": ids["<eos>"],
        "bos_token_id": ids["<bos>"],
    }
    vision: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "patch_size": PATCH,
        "pooling_kernel_size": POOL,
        "position_embedding_size": 1024,
        "default_output_length": TOKENS_PER_IMAGE,  # vLLM reads this; transformers reads the processor
    }
    return Gemma4Config(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        audio_token_id=ids["<|audio|>"],
        boi_token_id=ids["<|image>"],
        eoi_token_id=ids["<image|>"],
        boa_token_id=ids["<|audio>"],
        eoa_token_index=ids["<audio|>"],
    )


def processor(tokenizer: Any, chat_template: str) -> Gemma4Processor:
    pixels = {"patch_size": PATCH, "pooling_kernel_size": POOL, "max_soft_tokens": TOKENS_PER_IMAGE}
    return Gemma4Processor(
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessor(**pixels),
        video_processor=Gemma4VideoProcessor(**pixels),
        tokenizer=tokenizer,
        chat_template=chat_template,
        image_seq_length=TOKENS_PER_IMAGE,
    )


MODEL = TinyModel(
    architecture=Gemma4ForConditionalGeneration,
    config=config,
    tokens=TOKENS,
    tokenizer_settings={
        "bos_token": "<bos>",
        "extra_special_tokens": {
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
    },
    processor=processor,
    chat_template=CHAT_TEMPLATE,
    # Avoids near ties: the router divides by the root of the hidden size, and media have many tokens.
    factors={".router.scale": 8.0},
    seed=6,
)
