"""MoE-LLaVA's families of decoders. To add one, add a file here and an entry in FAMILIES."""

from transformers import PretrainedConfig

from prismoe.model_plugins.models.moe_llava.families.family import Family
from prismoe.model_plugins.models.moe_llava.families.phi import PHI
from prismoe.model_plugins.models.moe_llava.families.qwen import QWEN
from prismoe.model_plugins.models.moe_llava.families.qwen2 import QWEN1_5, QWEN2
from prismoe.model_plugins.models.moe_llava.families.stablelm import STABLELM

FAMILIES: list[Family] = [PHI, STABLELM, QWEN, QWEN1_5, QWEN2]

BY_MODEL_TYPE = {config.model_type: family for family in FAMILIES for config in family.configs}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a checkpoint with this config."""
    return BY_MODEL_TYPE[config.model_type]
