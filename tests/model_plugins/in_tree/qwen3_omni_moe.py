"""Qwen3-Omni's thinker: like Qwen3-VL-MoE, with sound. A video's sound can be between its frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeForConditionalGeneration,
    Qwen3OmniMoeProcessor,
    WhisperFeatureExtractor,
)

from tests.model_plugins.in_tree.qwen3_vl_moe import CHAT_TEMPLATE, DEEPSTACK, ROPE, vision
from tests.model_plugins.in_tree.requests_of_media import (
    MODALITIES,
    Answer,
    Request,
    generated,
    heard,
    media_of,
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
    "<|audio_start|>",
    "<|audio_end|>",
    "<|audio_pad|>",
)
NAMES = {
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
    "audio_token": "<|audio_pad|>",
}
EXPERTS, MEL_BINS = 8, 16
IDS_PER_SECOND = 13
"""Positions for each second: the processor's own number, close to the number of sound tokens."""


def config(ids: dict[str, int]) -> Qwen3OmniMoeConfig:
    text: dict[str, Any] = {
        "vocab_size": BYTES + len(ids),
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "rope_parameters": ROPE,
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    audio: dict[str, Any] = {
        "num_mel_bins": MEL_BINS,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "d_model": 64,
        "output_dim": text["hidden_size"],
        "downsample_hidden_size": 16,
    }
    tower = vision() | DEEPSTACK | {"out_hidden_size": text["hidden_size"]}
    # As released, and only read by vLLM: a side of `num_position_embeddings` patches.
    tower |= {"image_size": 8 * tower["patch_size"], "apply_vit_abs_pos_embed": True}
    thinker: dict[str, Any] = {
        "text_config": text,
        "vision_config": tower,
        "audio_config": audio,
        "position_id_per_seconds": IDS_PER_SECOND,
        "audio_start_token_id": ids["<|audio_start|>"],
        "audio_end_token_id": ids["<|audio_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "audio_token_id": ids["<|audio_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }
    return Qwen3OmniMoeConfig(thinker_config=thinker, enable_audio_output=False)


def processor(tokenizer: Any, chat_template: str) -> Qwen3OmniMoeProcessor:
    """A processor with 4 tokens for an image or two frames of 32 pixels, and sounds of up to two seconds."""
    pixels = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"shortest_edge": 4 * 32**2, "longest_edge": 16 * 32**2}
    return Qwen3OmniMoeProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **pixels),
        video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False, **pixels),
        feature_extractor=WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=2),
        tokenizer=tokenizer,
        chat_template=chat_template,
    )


MODEL = TinyModel(
    architecture=Qwen3OmniMoeForConditionalGeneration,
    config=config,
    tokens=TOKENS,
    tokenizer_settings={"extra_special_tokens": NAMES},
    processor=processor,
    chat_template=CHAT_TEMPLATE,
)
PLACEHOLDERS = {
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
    "audio": "<|audio_start|><|audio_pad|><|audio_end|>",
}


def answers(checkpoint: Path, requests: Sequence[Request], max_tokens: int) -> list[Answer]:
    """The answers of transformers' thinker to each request alone."""
    loaded = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        checkpoint, dtype="auto", attn_implementation="eager", experts_implementation="eager"
    )
    thinker, processor = loaded.thinker.eval(), Qwen3OmniMoeProcessor.from_pretrained(checkpoint)
    return [_answer(thinker, processor, request, max_tokens) for request in requests]


def _answer(thinker: Any, processor: Any, request: Request, max_tokens: int) -> Answer:
    media = media_of(request) | {"use_audio_in_video": request.mixes_sound}
    inputs = dict(processor(text=[request.prompt(PLACEHOLDERS)], **media))
    with heard(thinker, ".mlp.gate") as routers:
        prompt_ids, token_ids = generated(
            thinker, inputs | {"use_audio_in_video": request.mixes_sound}, max_tokens
        )
    of_token = {
        getattr(thinker.config, f"{name}_token_id"): number
        for number, name in enumerate(MODALITIES)
        if name != "text"
    }
    modality_T = [of_token.get(token, 0) for token in (prompt_ids + token_ids)[:-1]]
    counts = np.zeros((len(routers.experts), len(MODALITIES), EXPERTS), dtype=np.int64)
    for layer, steps in enumerate(routers.experts.values()):
        experts_TK = np.concatenate(steps)
        assert len(experts_TK) == len(modality_T)
        np.add.at(counts[layer], (np.array(modality_T)[:, None], experts_TK), 1)
    return Answer(prompt_ids, token_ids, counts)
