"""Writes and reads checkpoints in MoE-LLaVA's original Phi layout, with the image tower's config."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from prismoe.training.data.tokenizer import CHAT_TEMPLATE, END, IMAGE
from prismoe.training.model.moe_llava import ModelConfig, MoELLaVA
from prismoe.training.model.tower import TowerConfig

TOWER_FOLDER = "image_tower"
POSITIONS = 2048


def export(model: MoELLaVA, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights (bfloat16), configs and tokenizer to `folder`. Only complete files appear there."""
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / TOWER_FOLDER).mkdir(parents=True)
    weights = {name: weight.bfloat16().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
    (draft / "model.safetensors").chmod(0o644)  # safetensors makes it readable only by its owner
    end = tokenizer.convert_tokens_to_ids(END)
    _write(draft / "config.json", _config(model.config, model.model.image_tower.image_tower.config, end))
    _write(draft / "generation_config.json", {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end})
    _write(draft / TOWER_FOLDER / "config.json", _tower_config(model.model.image_tower.image_tower.config))
    _write(
        draft / TOWER_FOLDER / "preprocessor_config.json",
        _preprocessor(model.model.image_tower.image_tower.config),
    )
    tokenizer.backend_tokenizer.save(str(draft / "tokenizer.json"))
    _write(draft / "tokenizer_config.json", _TOKENIZER_CONFIG)
    (draft / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    place(draft, folder)


def place(draft: Path, folder: Path) -> None:
    """Move every file of `draft` to its place in `folder`, and replace existing files one by one."""
    for source in sorted(path for path in draft.rglob("*") if path.is_file()):
        target = folder / source.relative_to(draft)
        target.parent.mkdir(parents=True, exist_ok=True)
        arriving = target.with_name(f".{target.name}.arriving")
        shutil.move(source, arriving)  # works from another file system, too
        arriving.replace(target)
    shutil.rmtree(draft)


def load(folder: Path) -> MoELLaVA:
    """Load the model as a server does: bfloat16 weights, run in float32."""
    config = json.loads((folder / "config.json").read_text())
    tower = json.loads((folder / TOWER_FOLDER / "config.json").read_text())
    moe = config["moe"]
    config |= {
        "moe_layers": moe["moe_layers_idx"],
        "experts": moe["num_experts"][0],
        "expert_width": moe.get("expert_width"),
        "top_k": moe["top_k_experts"],
        "routing": config["prismoe_routing"],
    }
    model = MoELLaVA(
        ModelConfig(**{name: config[name] for name in ModelConfig.model_fields if name in config}),
        TowerConfig(**{name: tower[name] for name in TowerConfig.model_fields}),
    )
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.float().eval()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _config(config: ModelConfig, tower: TowerConfig, end: int) -> dict[str, Any]:
    return {
        "architectures": ["MoELLaVAPhiForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": end,
        "embd_pdrop": 0.0,
        "eos_token_id": end,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "gelu_new",
        "hidden_size": config.hidden_size,
        "image_aspect_ratio": "pad",
        "image_projector_type": "mlp2x_gelu",
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps,
        "max_position_embeddings": POSITIONS,
        "mm_hidden_size": tower.hidden_size,
        "mm_image_tower": TOWER_FOLDER,
        "mm_projector_lr": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_video_tower": None,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": config.mm_vision_select_layer,
        "model_type": "moe_llava_phi",
        "moe": {
            "capacity_factor": 1.5,
            "ep_size": 1,
            "eval_capacity_factor": 2.0,
            "min_capacity": 0,
            "moe_enable": True,
            "moe_layers_idx": list(config.moe_layers),
            "moe_mode": "sparse",
            "num_experts": [config.experts] * len(config.moe_layers),
            "router_aux_loss_coef": 0.01,
            "top_k_experts": config.top_k,
            "train_modules": None,
            "use_residual": False,
        }
        | ({} if config.expert_width is None else {"expert_width": config.expert_width}),
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_attention_heads,
        "pad_token_id": end,
        "partial_rotary_factor": config.partial_rotary_factor,
        "prismoe_routing": dict(config.routing),
        "qk_layernorm": False,
        "resid_pdrop": 0.0,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": False,
        "tokenizer_padding_side": "right",
        "torch_dtype": str(torch.float32).removeprefix("torch."),
        "tune_mm_mlp_adapter": False,
        "use_cache": True,
        "use_mm_proj": True,
        "vocab_size": config.vocab_size,
    }


def _tower_config(tower: TowerConfig) -> dict[str, Any]:
    fixed = {
        "architectures": ["CLIPVisionModel"],
        "attention_dropout": 0.0,
        "model_type": "clip_vision_model",
    }
    return {**fixed, **tower.model_dump(), "projection_dim": tower.hidden_size, "torch_dtype": "float32"}


def _preprocessor(tower: TowerConfig) -> dict[str, Any]:
    side = tower.image_size
    return {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.5] * 3,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }


_TOKENIZER_CONFIG = {
    "additional_special_tokens": [IMAGE],
    "bos_token": END,
    "clean_up_tokenization_spaces": False,
    "eos_token": END,
    "model_max_length": POSITIONS,
    "pad_token": END,
    "padding_side": "right",
    "tokenizer_class": "PreTrainedTokenizerFast",
}
