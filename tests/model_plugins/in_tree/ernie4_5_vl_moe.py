"""ERNIE-4.5-VL: separate text experts and vision experts in a layer, each with a router.

The routers are renormalised softmaxes with a bias, which is 0 here. The first layer is dense, and shared
experts process all tokens.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from transformers import (
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeForConditionalGeneration,
    Ernie4_5_VLMoeImageProcessor,
    Ernie4_5_VLMoeProcessor,
    Ernie4_5_VLMoeVideoProcessor,
)

from tests.model_plugins.in_tree import ernie_released
from tests.model_plugins.in_tree.requests_of_media import (
    MODALITIES,
    Answer,
    Request,
    generated,
    heard,
    media_of,
)
from tests.model_plugins.in_tree.tiny_model import BYTES, TinyModel

NAMES = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_token": "<|VIDEO_PLACEHOLDER|>",
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}
TOKENS = ("<unk>", "</s>", *NAMES.values(), "<|image@placeholder|>", "<|video@placeholder|>")
PLACEHOLDERS = {
    kind: f"{NAMES[f'{kind}_start_token']}{NAMES[f'{kind}_token']}{NAMES[f'{kind}_end_token']}"
    for kind in ("image", "video")
}
RELEASED_PLACEHOLDERS = {
    kind: f"{NAMES[f'{kind}_start_token']}<|{kind}@placeholder|>{NAMES[f'{kind}_end_token']}"
    for kind in ("image", "video")
}
ENGINE: dict[str, Any] = {
    "trust_remote_code": True,
    "limit_mm_per_prompt": {"image": 2, "video": 1},
    # Otherwise vLLM's rotary embedding of this model fails on CPU.
    "compilation_config": {"custom_ops": ["none"]},
}
EXPERTS, LAYERS, PATCH = 8, 3, 14
"""The number of text experts, and of vision experts."""
TEXT: dict[str, Any] = {
    "vocab_size": BYTES + len(TOKENS),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "moe_intermediate_size": [96, 64],
    "moe_k": 2,
    "moe_num_shared_experts": 1,
    "tie_word_embeddings": False,
    "use_bias": False,
}
VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 64,
    "hidden_act": "quick_gelu",
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 6, 4]}


def config(ids: dict[str, int]) -> Ernie4_5_VLMoeConfig:
    text = {"moe_num_experts": EXPERTS, "rope_parameters": ROPE, "pad_token_id": 256, "eos_token_id": 257}
    return Ernie4_5_VLMoeConfig(
        text_config=TEXT | text,
        vision_config=VISION | {"intermediate_size": 128, "temporal_merge_size": 2, "rms_norm_eps": 1e-5},
        tie_word_embeddings=False,
        **{f"{name}_id": ids[token] for name, token in NAMES.items()},
    )


def processor(tokenizer: Any, chat_template: str) -> Ernie4_5_VLMoeProcessor:
    """A processor with 4 to 16 tokens for an image or two frames; a token is 28 pixels wide."""
    pixels: dict[str, Any] = {
        "size": {"shortest_edge": 4 * 28**2, "longest_edge": 16 * 28**2},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Ernie4_5_VLMoeProcessor(
        image_processor=Ernie4_5_VLMoeImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False, do_sample_frames=False, **pixels),
        chat_template=chat_template,
    )


MODEL = TinyModel(
    architecture=Ernie4_5_VLMoeForConditionalGeneration,
    config=config,
    tokens=TOKENS,
    tokenizer_settings={"extra_special_tokens": NAMES},
    processor=processor,
    chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    factors={".e_score_correction_bias": 0.0},  # vLLM's router on CPU ignores a softmax's bias
)


def as_released(checkpoint: Path) -> Path:
    """Write the weights into a folder in the form of the Hub, which vLLM loads with `trust_remote_code`."""
    folder = checkpoint.with_name(f"{checkpoint.name}-released")
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    weights = load_file(checkpoint / "model.safetensors")
    renamed = {name.replace("model.vision_model.", "vision_model."): weights[name] for name in weights}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    shutil.copy(ernie_released.__file__, folder)
    own = json.loads((checkpoint / "config.json").read_text())
    settings = TEXT | {
        "architectures": own["architectures"],
        "auto_map": {"AutoConfig": "ernie_released.Config"},
        "model_type": ernie_released.Config.model_type,
        "dtype": own["dtype"],
        "vision_config": VISION | {"embed_dim": VISION["hidden_size"], "mlp_ratio": 2},
        "moe_num_experts": [EXPERTS, EXPERTS],
        "moe_layer_start_index": [1, 1],
        "moe_layer_end_index": [LAYERS - 1, LAYERS - 1],
        "freq_allocation": ROPE["mrope_section"][2],
        "rope_parameters": ROPE,
        "pixel_hidden_size": VISION["hidden_size"],
        "spatial_conv_size": 2,
        "temporal_conv_size": 2,
        "use_temporal_conv": True,
        "im_patch_id": own["image_token_id"],
        **{name: own[name] for name in (f"{name}_id" for name in NAMES)},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    file = folder / "processor_config.json"
    loaded = json.loads(file.read_text()) | {"auto_map": {"AutoProcessor": "ernie_released.Processor"}}
    file.write_text(json.dumps(loaded | {"processor_class": "Processor"}))
    return folder


def answers(checkpoint: Path, requests: Sequence[Request], max_tokens: int) -> list[Answer]:
    """Transformers' answer to each request alone. A video's tokens are spelled like in vLLM."""
    model = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
        checkpoint, dtype="auto", attn_implementation="eager", experts_implementation="eager"
    ).eval()
    processor = Ernie4_5_VLMoeProcessor.from_pretrained(checkpoint)
    return [_answer(model, processor, request, max_tokens) for request in requests]


def _answer(model: Any, processor: Any, request: Request, max_tokens: int) -> Answer:
    inputs = processor(text=[request.prompt(PLACEHOLDERS)], **media_of(request))
    with heard(model, "_moe.gate") as routers:
        prompt_ids, token_ids = generated(model, inputs, max_tokens)
    modality_T = np.concatenate([inputs["mm_token_type_ids"][0].numpy(), np.zeros(max_tokens - 1, int)])
    is_vision_T = np.zeros(len(modality_T), dtype=bool)
    is_vision_T[: len(prompt_ids)] = inputs["moe_mm_token_type_ids"][0].numpy() > 0
    counts = np.zeros((LAYERS - 1, len(MODALITIES) - 1, 2 * EXPERTS), dtype=np.int64)
    for name, steps in routers.experts.items():
        experts_PK = np.concatenate(steps) if steps else np.zeros((0, TEXT["moe_k"]), dtype=np.int64)
        layer, is_vision = int(name.split(".layers.")[1].split(".")[0]) - 1, ".vision_moe." in name
        rows = modality_T[is_vision_T == is_vision]
        np.add.at(counts[layer], (rows[:, None], experts_PK + EXPERTS * is_vision), 1)
    one_id = {model.config.video_token_id: model.config.image_token_id}
    return Answer([one_id.get(token, token) for token in prompt_ids], token_ids, counts)
