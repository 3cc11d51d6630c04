"""Kimi-K2.5: grouped sigmoid with a bias, scaled; a shared expert; a dense first layer.

vLLM processes an image and each four frames of a video alike, as a chunk, with the same token for both.
"""

from pathlib import Path
from typing import Any

from PIL import Image
from PIL.Image import Image as Picture
from torch import Tensor
from transformers import (
    Kimi_K25Config,
    Kimi_K25ForConditionalGeneration,
    Kimi_K25ImageProcessor,
    Kimi_K25Processor,
    Kimi_K25VideoProcessor,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.model_plugins.in_tree.chats import PICTURE_AND_VIDEO, TEXT, TWO_PICTURES, Chat, Video, video
from tests.model_plugins.in_tree.tiny_model import BYTES, TinyModel

TOKENS = (
    "[PAD]",
    "[EOS]",
    "<|im_user|>",
    "<|im_assistant|>",
    "<|im_middle|>",
    "<|im_end|>",
    "<|media_begin|>",
    "<|media_content|>",
    "<|media_end|>",
    "<|media_pad|>",
    "<|kimi_k25_video_placeholder|>",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_user|>{{ m.role }}<|im_middle|>"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type in ('image', 'image_url') %}"
    "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>"
    "{% elif c.type in ('video', 'video_url') %}<|kimi_k25_video_placeholder|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>"
    "{% endfor %}<|im_assistant|>assistant<|im_middle|>"
)
OF_VIDEO = "<|media_begin|>video<|media_content|><|media_pad|><|media_end|>"
PATCH, FRAMES = 14, 4
SIDE = 512
"""The most patches on a side of an image."""

ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
"""Plain rotary positions as released. vLLM 0.32 on CPU rotates the wrong part of a head for others."""


def config(ids: dict[str, int]) -> Kimi_K25Config:
    text: dict[str, Any] = {
        "model_type": "deepseek_v3",
        "vocab_size": BYTES + len(ids),
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 96,
        "num_hidden_layers": 3,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 512,  # together with the next setting the only size that vLLM has a kernel for on CPU
        "q_lora_rank": 48,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 64,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
        "n_shared_experts": 1,
        "num_nextn_predict_layers": 0,
        "topk_method": "noaux_tc",  # vLLM reads this and the next; transformers always does it
        "scoring_func": "sigmoid",
        "max_position_embeddings": 4096,
        "rope_parameters": ROPE,
        "tie_word_embeddings": False,
        "pad_token_id": ids["[PAD]"],
        "bos_token_id": ids["[PAD]"],
        "eos_token_id": ids["[EOS]"],
    }
    vision: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": PATCH,
        "pos_emb_height": 8,
        "pos_emb_width": 8,
    }
    return Kimi_K25Config(
        text_config=text,
        vision_config=vision,
        projection_hidden_size=64,
        image_token_id=ids["<|media_pad|>"],
        video_token_id=ids["<|kimi_k25_video_placeholder|>"],
        vision_start_token_id=ids["<|media_begin|>"],
        vision_end_token_id=ids["<|media_end|>"],
        tie_word_embeddings=False,
    )


def processor(tokenizer: Any, chat_template: str) -> Kimi_K25Processor:
    """A processor that pads an image to tokens of 28 pixels. vLLM has its own processor."""
    alike = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for_vllm = {
        "patch_size": PATCH,
        "merge_kernel_size": 2,
        "temporal_merge_kernel_size": FRAMES,
        "in_patch_limit": SIDE,
        "in_patch_limit_each_frame": SIDE,
        "in_patch_limit_video": None,
        "patch_limit_on_one_side": SIDE,
        "fixed_output_tokens": None,
    }
    return Kimi_K25Processor(
        image_processor=Kimi_K25ImageProcessor(media_proc_cfg=for_vllm | alike, **alike),
        video_processor=Kimi_K25VideoProcessor(**alike),
        tokenizer=tokenizer,
        chat_template=chat_template,
    )


MODEL = TinyModel(
    architecture=Kimi_K25ForConditionalGeneration,
    name="KimiK25ForConditionalGeneration",
    config=config,
    tokens=TOKENS,
    tokenizer_settings={},
    processor=processor,
    chat_template=CHAT_TEMPLATE,
    renamed={
        "language_model.model.blocks.": "language_model.model.layers.",
        "vision_tower.encoder.patch_embed.proj.": "vision_tower.patch_embed.proj.",
        "vision_tower.encoder.patch_embed.": "vision_tower.patch_embed.",
        "model.mm_projector.": "mm_projector.",
    },
)
CHATS = (TEXT, TWO_PICTURES, PICTURE_AND_VIDEO, Chat((video(10, frames=9), "Which colours?")))
"""The last chunk of nine frames has one frame."""
SPELLED = {BYTES + TOKENS.index("<|kimi_k25_video_placeholder|>"): BYTES + TOKENS.index("<|media_pad|>")}
"""Each placeholder token of transformers, and the token of vLLM in its place."""


def for_vllm(chat: Chat, checkpoint: Path) -> dict[str, Any]:
    """The prompt for `LLM.generate`: the frames of a video are chunks, each after its time."""
    prompt, chunks = chat.prompt(checkpoint), list[dict[str, Any]]()
    for part in chat.parts:
        if isinstance(part, Picture):
            chunks.append({"type": "image", "image": part, "uuid": None})
        elif isinstance(part, Video):
            spelled = ""
            for first in range(0, len(part.frames), FRAMES):
                frames = [Image.fromarray(frame) for frame in part.frames[first : first + FRAMES]]
                chunks.append({"type": "video_chunk", "video_chunk": frames, "uuid": None})
                spelled += f"00:00:{first / part.fps:06.3f}{OF_VIDEO}"
            prompt = prompt.replace("<|kimi_k25_video_placeholder|>", spelled, 1)
    return {"prompt": prompt, "multi_modal_data": {"vision_chunk": chunks} if chunks else {}}


def mend(model: Any) -> None:
    """Embed chunk by chunk.

    Transformers 5.19 fails if a chunk has several frames or chunks differ in length.
    """
    inner = model.model

    def features(pixel_values: Tensor, image_grid_thw: Tensor, **_: Any) -> Any:
        patches = pixel_values.split(image_grid_thw.prod(-1).tolist())
        outputs = [
            inner.vision_tower(of_chunk, grid_thw=grid[None])
            for of_chunk, grid in zip(patches, image_grid_thw, strict=True)
        ]
        embedded = [inner.mm_projector(output.pooler_output).squeeze(1) for output in outputs]
        return BaseModelOutputWithPooling(pooler_output=embedded)

    inner.get_image_features = features
