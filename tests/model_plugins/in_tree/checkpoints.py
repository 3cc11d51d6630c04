"""The tiny checkpoints of vLLM's own models, by name."""

from pathlib import Path

from tests.model_plugins.in_tree import (
    aria_moe,
    cohere2_vision,
    ernie4_5_vl_moe,
    gemma4_moe,
    glm4v_moe,
    internvl_moe,
    kimi_k25,
    llama4_moe,
    mistral3_moe,
    qwen3_5_moe,
    qwen3_omni_moe,
    qwen3_vl_moe,
)

MODELS = {
    "qwen3-vl-moe": qwen3_vl_moe.MODEL,
    "glm4v-moe": glm4v_moe.MODEL,
    "qwen3.5-moe": qwen3_5_moe.MODEL,
    "gemma4-moe": gemma4_moe.MODEL,
    "cohere2-vision": cohere2_vision.MODEL,
    "ernie4.5-vl-moe": ernie4_5_vl_moe.MODEL,
    "kimi-k2.5": kimi_k25.MODEL,
    "mistral3-moe": mistral3_moe.MODEL,
    "internvl-moe": internvl_moe.MODEL,
    "aria-moe": aria_moe.MODEL,
    "llama4-moe": llama4_moe.MODEL,
    "qwen3-omni-moe": qwen3_omni_moe.MODEL,
}


def make_checkpoint(name: str, folder: Path) -> Path:
    """Write the model of this name into `folder`. The bytes are the same each time."""
    MODELS[name].save(folder / name)
    return folder / name
