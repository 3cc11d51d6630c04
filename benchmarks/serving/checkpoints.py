"""Makes checkpoints with random weights, and their twins: models of vLLM with the same shape."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from tests.model_plugins.tiny_checkpoints import MOE, make_checkpoint

TWIN_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder. All of its layers have gated experts, and each token uses two."""

    hidden: int
    layers: int
    heads: int
    width: int
    """The width of an expert."""
    experts: int
    vocabulary: int
    dtype: str
    image_size: int = 224
    """The side of the tiny tower's images, in pixels; a patch is 14 pixels wide."""

    @property
    def parameters(self) -> int:
        """The number of the decoder's parameters."""
        layer = 4 * self.hidden**2 + 3 * self.experts * self.hidden * self.width
        return self.layers * layer + 2 * self.vocabulary * self.hidden


def shape_of_size(experts: int = 8, layers: int = 12) -> Shape:
    """A shape that has half a billion parameters with the defaults."""
    return Shape(1024, layers, 16, 1408, experts, 32000, "bfloat16")


SMALL = Shape(192, 4, 6, 768, 4, 1136, "float32", image_size=112)
"""The bundled model's sizes with StableLM's layers, since vLLM has no MoE model with experts like Phi's."""


def moe_llava(shape: Shape, routing: dict[str, Any], folder: Path) -> Path:
    """A MoE-LLaVA checkpoint on StableLM in `folder`, written unless it exists."""
    checkpoint = folder / "stablelm-clip"
    if (checkpoint / "done").exists():
        return checkpoint
    shutil.rmtree(folder, ignore_errors=True)
    every = list(range(shape.layers))
    make_checkpoint(
        folder,
        "stablelm",
        moe=MOE | {"moe_layers_idx": every, "num_experts": [shape.experts] * shape.layers},
        dtype=getattr(torch, shape.dtype),
        image_size=shape.image_size,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.width,
        vocab_size=shape.vocabulary,
        torch_dtype=shape.dtype,
        prismoe_routing=routing,
    )
    for name in ("merges.txt", "vocab.json", "tokenizer_config.json", "special_tokens_map.json"):
        (checkpoint / name).unlink()
    _copy_tokenizer(checkpoint)
    (checkpoint / "done").touch()
    return checkpoint


def twin(shape: Shape, folder: Path) -> Path:
    """The folder of a Mixtral of the same shape: config and tokenizer. vLLM makes its random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "intermediate_size": shape.width,
        "num_local_experts": shape.experts,
        "num_experts_per_tok": 2,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": shape.dtype,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(TWIN_TEMPLATE)
    _copy_tokenizer(folder)
    return folder


def _copy_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled_checkpoint() / name, folder / name)
