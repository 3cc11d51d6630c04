"""Checks that vLLM's quantisation at load time works with these experts."""

from typing import Any

import torch
from vllm.config import ModelConfig
from vllm.platforms import current_platform

from prismoe.model_plugins.models.moe_llava.families.family import Family

CPU_EXPERTS = ("int8_per_channel_static", "fp8_per_block_static")
"""The forms in which vLLM's CPU kernels hold quantised experts. Its quantised linear layers fail with a
bias."""


def check_quantization(model: ModelConfig, family: Family) -> None:
    """Raise ValueError for quantisation that does not run on CPU; on other platforms vLLM decides."""
    if model.quantization is None or not current_platform.is_cpu():
        return
    if family.feed_forward.gate is None:
        raise ValueError(
            f"vLLM's CPU kernels quantise gated SiLU experts, and {family.spelling}'s have another form: "
            "leave --quantization out."
        )
    if not torch.cpu._is_amx_tile_supported():
        raise ValueError("vLLM's CPU kernels of quantised experts need AMX: leave --quantization out.")
    if model.quantization != "experts_int8" and not _quantises_experts_alone(model.quantization_config):
        raise ValueError(
            f"--quantization {model.quantization} does not run on CPU: use int8_per_channel_weight_only, or "
            """online with --quantization-config '{"moe": "fp8_per_block"}': these quantise only experts."""
        )


def _quantises_experts_alone(settings: Any) -> bool:
    if settings is None or settings.linear is not None or settings.targets is not None:
        return False
    return str(settings.moe) in CPU_EXPERTS
