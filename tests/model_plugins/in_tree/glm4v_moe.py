"""GLM-4.5V: grouped sigmoid with a bias, scaled; a shared expert; a dense first layer.

The frames of a video use the token of images.
"""

from typing import Any

from transformers import (
    Glm4vImageProcessor,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm4vProcessor,
    Glm4vVideoProcessor,
)

from tests.model_plugins.in_tree.tiny_model import BYTES, TinyModel

TOKENS = (
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "[gMASK]",
    "<sop>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
)
CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type in ('image', 'image_url') %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif c.type in ('video', 'video_url') %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}<|assistant|>\n"
)


def config(ids: dict[str, int]) -> Glm4vMoeConfig:
    text: dict[str, Any] = {
        "vocab_size": BYTES + len(ids),
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 96,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "use_qk_norm": False,  # vLLM reads it; transformers has no such setting
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
        "n_shared_experts": 1,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [2, 3, 3],
        },
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|endoftext|>"], ids["<|user|>"]],
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "image_size": 112,
        "patch_size": 14,
        "out_hidden_size": 64,
    }
    return Glm4vMoeConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
    )


def processor(tokenizer: Any, chat_template: str) -> Glm4vProcessor:
    """A processor with 4 to 16 tokens for an image; a token is 28 pixels wide.

    Sizes count both frames of a patch.
    """
    return Glm4vProcessor(
        image_processor=Glm4vImageProcessor(size={"shortest_edge": 8 * 28**2, "longest_edge": 32 * 28**2}),
        video_processor=Glm4vVideoProcessor(size={"shortest_edge": 8 * 28**2, "longest_edge": 64 * 28**2}),
        tokenizer=tokenizer,
        chat_template=chat_template,
    )


MODEL = TinyModel(
    architecture=Glm4vMoeForConditionalGeneration,
    config=config,
    tokens=TOKENS,
    tokenizer_settings={},
    processor=processor,
    chat_template=CHAT_TEMPLATE,
)
