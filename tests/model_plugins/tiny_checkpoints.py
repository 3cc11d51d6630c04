"""Writes random-weight checkpoints of every family and tower in the authors' layout, tiny by default."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    PretrainedConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from prismoe.model_plugins.models.moe_llava.config import routing_in_force
from prismoe.model_plugins.routing.policy import RoutingPolicy
from tests.model_plugins.engine import PHI
from tests.model_plugins.routing.routing_steps import random_parameter

HIDDEN, HEADS, LAYERS, WIDTH, VOCABULARY, TOWER_WIDTH = 64, 4, 4, 128, 512, 32
FAMILIES, TOWERS = ("phi", "stablelm", "qwen", "qwen2"), ("clip", "siglip")
MOE: dict[str, Any] = {
    "moe_enable": True,
    "moe_mode": "sparse",
    "moe_layers_idx": [0, 2],
    "num_experts": [4, 4],
    "top_k_experts": 2,
    "capacity_factor": 1.5,
    "eval_capacity_factor": 2.0,
    "use_residual": False,
}

_FAMILY_CONFIG: dict[str, dict[str, Any]] = {
    "phi": {
        "architectures": ["MoELLaVAPhiForCausalLM"],
        "model_type": "moe_llava_phi",
        "hidden_act": "gelu_new",
        "intermediate_size": WIDTH,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "num_key_value_heads": HEADS,
        "partial_rotary_factor": 0.4,
        "qk_layernorm": False,
        "rope_theta": 10000.0,
    },
    "stablelm": {
        "architectures": ["MoELLaVAStablelmForCausalLM"],
        "model_type": "moe_llava_stablelm",
        "hidden_act": "silu",
        "intermediate_size": WIDTH,
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "num_key_value_heads": HEADS,
        "rope_pct": 0.25,
        "rope_theta": 10000,
        "use_qkv_bias": True,
    },
    "qwen": {
        "architectures": ["MoELLaVAQWenForCausalLM"],
        "model_type": "moe_llava_qwen",
        "intermediate_size": 2 * WIDTH,
        "kv_channels": HIDDEN // HEADS,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 8192,
        "no_bias": True,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "seq_length": 8192,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
    },
    "qwen2": {
        "architectures": ["MoELLaVAQWen2ForCausalLM"],
        "model_type": "moe_llava_qwen2",
        "hidden_act": "silu",
        "intermediate_size": WIDTH,
        "max_position_embeddings": 8192,
        "num_key_value_heads": HEADS // 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
}


def make_checkpoint(
    folder: Path,
    family: str,
    tower: str = "clip",
    moe: dict[str, Any] | None = MOE,
    dtype: torch.dtype = torch.float32,
    image_size: int = 56,
    **changes: Any,
) -> Path:
    """Write a checkpoint and its tower's settings into `folder`. It is dense if `moe` is None.

    `changes` override its config, including sizes. It has the tensors that its `prismoe_routing` needs.
    """
    checkpoint, tower_folder = folder / f"{family}-{tower}", folder / "towers" / tower
    generator = torch.Generator().manual_seed(FAMILIES.index(family) * 10 + TOWERS.index(tower))
    config = _config(family, f"towers/{tower}") | ({} if moe is None else {"moe": moe}) | changes
    if moe is None:
        config["model_type"] = config["model_type"].removeprefix("moe_")
        config["architectures"] = [name.replace("MoELLaVA", "Llava") for name in config["architectures"]]
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text(json.dumps(config))
    for name in ("merges.txt", "vocab.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(PHI / name, checkpoint / name)
    tower_weights = _write_tower(tower_folder, tower, image_size)
    trunk = "transformer" if family == "qwen" else "model"
    weights = {f"{trunk}.image_tower.image_tower.{name}": weight for name, weight in tower_weights.items()}
    for name, shape in _decoder_shapes(family, config, trunk):
        make = _random_router if ".router." in name else _random
        weights[name] = make(name, shape, generator).to(dtype)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def _config(family: str, tower: str) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY,
        "bos_token_id": 400,
        "eos_token_id": 400,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "image_aspect_ratio": "pad",
        "image_projector_type": "mlp2x_gelu",
        "mm_hidden_size": TOWER_WIDTH,
        "mm_image_tower": tower,
        "mm_video_tower": None,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
    } | _FAMILY_CONFIG[family]


def _write_tower(folder: Path, tower: str, image_size: int) -> dict[str, Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "hidden_size": TOWER_WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": image_size,
        "patch_size": 14,
    }
    torch.manual_seed(TOWERS.index(tower))
    if tower == "clip":
        model = CLIPVisionModel(CLIPVisionConfig(**sizes))
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": image_size, "width": image_size},
        }
        mean, size = [0.48145466, 0.4578275, 0.40821073], {"shortest_edge": image_size}
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**sizes))
        processor = {"image_processor_type": "SiglipImageProcessor"}
        mean, size = [0.5, 0.5, 0.5], {"height": image_size, "width": image_size}
    model.config.save_pretrained(folder)
    settings = {"image_mean": mean, "image_std": [0.5, 0.5, 0.5], "size": size, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | settings))
    weights = {}
    for name, weight in model.state_dict().items():
        name = name if name.startswith("vision_model.") else f"vision_model.{name}"
        weights[name] = (weight + 0.1 * torch.randn(weight.shape)).contiguous()
    return weights


def _decoder_shapes(family: str, config: dict[str, Any], trunk: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    in_force = routing_in_force(PretrainedConfig(**config), operator=None)
    policies = {layer: routing.policy for layer, routing in in_force.layers.items()}
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)
    yield f"{trunk}.mm_projector.image_spatial_proj.0.weight", (hidden, TOWER_WIDTH)
    yield f"{trunk}.mm_projector.image_spatial_proj.2.weight", (hidden, hidden)
    yield from ((f"{trunk}.mm_projector.image_spatial_proj.{index}.bias", (hidden,)) for index in (0, 2))
    embedding, final_norm, layers = {
        "phi": ("embed_tokens", "final_layernorm", "layers"),
        "qwen": ("wte", "ln_f", "h"),
    }.get(family, ("embed_tokens", "norm", "layers"))
    yield f"{trunk}.{embedding}.weight", (vocabulary, hidden)
    yield from _norm(f"{trunk}.{final_norm}", family, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"{trunk}.{layers}.{layer}"
        yield from _attention(prefix, family, config)
        for norm in {"phi": ["input_layernorm"], "qwen": ["ln_1", "ln_2"]}.get(
            family, ["input_layernorm", "post_attention_layernorm"]
        ):
            yield from _norm(f"{prefix}.{norm}", family, hidden)
        moe = config.get("moe") or {"moe_layers_idx": []}
        if layer not in moe["moe_layers_idx"]:
            yield from _mlp(f"{prefix}.mlp", family, config)
            continue
        if moe["use_residual"]:
            yield from _mlp(f"{prefix}.mlp.mlp", family, config)
            yield f"{prefix}.mlp.coefficient.weight", (2, hidden)
            yield f"{prefix}.mlp.coefficient.bias", (2,)
        experts = moe["num_experts"][moe["moe_layers_idx"].index(layer)]
        yield from _router(f"{prefix}.mlp.deepspeed_moe", policies[layer], hidden, experts)
        for expert in range(experts):
            yield from _mlp(
                f"{prefix}.mlp.deepspeed_moe.experts.deepspeed_experts.{expert}",
                family,
                config,
                moe.get("expert_width"),
            )


def _router(
    prefix: str, policy: RoutingPolicy, hidden: int, experts: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    if rows := policy.gate_rows(experts):
        yield f"{prefix}.gate.wg.weight", (rows, hidden)
    for name, shape in policy.parameters(hidden, experts).items():
        yield f"{prefix}.router.{name}", shape


def _norm(prefix: str, family: str, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.weight", (hidden,)
    if family not in ("qwen", "qwen2"):
        yield f"{prefix}.bias", (hidden,)


def _attention(prefix: str, family: str, config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config["hidden_size"]
    if family == "qwen":
        yield f"{prefix}.attn.c_attn.weight", (3 * hidden, hidden)
        yield f"{prefix}.attn.c_attn.bias", (3 * hidden,)
        yield f"{prefix}.attn.c_proj.weight", (hidden, hidden)
        return
    kv_width = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    for name, width in (("q_proj", hidden), ("k_proj", kv_width), ("v_proj", kv_width)):
        yield f"{prefix}.self_attn.{name}.weight", (width, hidden)
        yield f"{prefix}.self_attn.{name}.bias", (width,)
    output = "dense" if family == "phi" else "o_proj"
    yield f"{prefix}.self_attn.{output}.weight", (hidden, hidden)
    if family == "phi":
        yield f"{prefix}.self_attn.{output}.bias", (hidden,)


def _mlp(
    prefix: str, family: str, config: dict[str, Any], width: int | None = None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config["hidden_size"]
    width = width or config["intermediate_size"] // (2 if family == "qwen" else 1)
    inner, outer = {
        "phi": (["fc1"], "fc2"),
        "qwen": (["w1", "w2"], "c_proj"),
    }.get(family, (["gate_proj", "up_proj"], "down_proj"))
    for name in inner:
        yield f"{prefix}.{name}.weight", (width, hidden)
    yield f"{prefix}.{outer}.weight", (hidden, width)
    if family == "phi":
        yield f"{prefix}.fc1.bias", (width,)
        yield f"{prefix}.fc2.bias", (hidden,)


def _random_router(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return random_parameter(name.rpartition(".")[2], shape, generator)


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.1 * noise + (1.0 if name.endswith(".weight") else 0.0)
    return noise * shape[-1] ** -0.5
