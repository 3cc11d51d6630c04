"""Tiny models for queries about vLLM's kernels: MoE-LLaVA's families, and two of vLLM's own models."""

import json
from pathlib import Path
from typing import Any

from tests.model_plugins.in_tree.checkpoints import make_checkpoint

IN_TREE = ("qwen3-vl-moe", "glm4v-moe")
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
"""Sizes of the decoders: multiples of the group sizes of quantisations."""
NOT_QUANTISED = ["lm_head", "re:.*visual.*", "re:.*mlp.gate$"]
GROUPS_OF_128: dict[str, Any] = {"bits": 4, "group_size": 128, "modules_to_not_convert": ["visual"]}
QUANTISATIONS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "FP8 in blocks": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["visual"],
    },
    "FP8 of compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "ignore": NOT_QUANTISED,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
                "input_activations": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": "token",
                    "dynamic": True,
                    "symmetric": True,
                },
            }
        },
    },
    "AWQ": {"quant_method": "awq", "zero_point": True, "version": "gemm"} | GROUPS_OF_128,
    "GPTQ": {"quant_method": "gptq", "desc_act": False, "sym": True} | GROUPS_OF_128,
    "NVFP4": {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "group_size": 16,
        "kv_cache_scheme": None,
        "ignore": ["lm_head", "*visual*", "*mlp.gate"],
    },
}
"""The quantisation settings of a checkpoint by name. None is no quantisation."""


def settings_of(name: str, quantisation: str, folder: Path) -> Path:
    """The folder of a model of vLLM with `SIZES` and quantisation settings. Its weights don't match them."""
    checkpoint = make_checkpoint(name, folder / quantisation.replace(" ", "-"))
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] |= SIZES
    config["vision_config"]["out_hidden_size"] = SIZES["hidden_size"]
    settings = QUANTISATIONS[quantisation]
    if settings is not None:
        config["quantization_config"] = settings
    file.write_text(json.dumps(config))
    return checkpoint
