"""A family is one file and one entry in FAMILIES, and everything else follows from them."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from transformers import AutoConfig
from vllm import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.transformers_utils.chat_templates.registry import get_chat_template_fallback_path

from prismoe.model_plugins.models.moe_llava import families, start_check
from prismoe.model_plugins.models.moe_llava.families import FAMILIES
from prismoe.model_plugins.models.moe_llava.families.family import Family
from prismoe.model_plugins.models.moe_llava.model import MoELLaVAForCausalLM, checkpoint_names
from prismoe.model_plugins.plugin import register
from tests.model_plugins.engine import PHI

SHARED = {"__init__", "family", "settings"}
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.spelling)


def test_each_file_of_a_family_is_in_the_list() -> None:
    files = {file.stem for file in Path(families.__path__[0]).glob("*.py")} - SHARED
    assert {family.decoder.__module__.rpartition(".")[2] for family in FAMILIES} == files


@pytest.mark.parametrize(
    ("model_type", "architecture", "title", "tokenizer_files"),
    [
        ("moe_llava_phi", "MoELLaVAPhiForCausalLM", "Phi-2", []),
        ("llava_phi", "EvalLlavaPhiForCausalLM", "Phi-2", []),
        (
            "moe_llava_stablelm",
            "EvalMoELLaVAStablelmForCausalLM",
            "StableLM",
            [("arcade100k.tiktoken",)],
        ),
        ("llava_stablelm", "LlavaStablelmForCausalLM", "StableLM", [("arcade100k.tiktoken",)]),
        ("moe_llava_qwen", "MoELLaVAQWenForCausalLM", "Qwen-1", [("qwen.tiktoken",)]),
        ("llava_qwen", "EvalLlavaQWenForCausalLM", "Qwen-1", [("qwen.tiktoken",)]),
        ("moe_llava_qwen1_5", "EvalMoELLaVAQwen1_5ForCausalLM", "Qwen1.5", []),
        ("llava_qwen1_5", "LlavaQwen1_5ForCausalLM", "Qwen1.5", []),
        ("moe_llava_qwen2", "MoELLaVAQWen2ForCausalLM", "Qwen2", []),
    ],
)
def test_the_authors_names(
    model_type: str, architecture: str, title: str, tokenizer_files: list[tuple[str, ...]]
) -> None:
    family = families.BY_MODEL_TYPE[model_type]
    assert architecture in family.architectures
    assert family.title == title
    assert family.tokenizer_files == [("tokenizer.json",), *tokenizer_files, ("vocab.json", "merges.txt")]


class Refused(Exception):
    """Raised by the check at the start."""


@each_family
def test_vllm_knows_each_family(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_check, "check_start", Mock(side_effect=Refused))
    register()
    assert len(family.architectures) == 2 * len(family.configs)
    for architecture in family.architectures:
        assert ModelRegistry.models[architecture].load_model_cls() is MoELLaVAForCausalLM
        with pytest.raises(Refused):
            MODELS_CONFIG_MAP[architecture].verify_and_update_config(Mock())
    for config in family.configs:
        assert type(AutoConfig.for_model(config.model_type)) is config
        template = get_chat_template_fallback_path(config.model_type, str(PHI))
        assert template is not None
        assert "ASSISTANT:" in template.read_text()


@pytest.mark.parametrize(
    ("family", "theirs", "ours"),
    [
        ("Phi", "model.layers.0.self_attn.dense.bias", "model.layers.0.self_attn.o_proj.bias"),
        ("Phi", "model.layers.0.mlp.fc2.weight", "model.layers.0.mlp.fc2.weight"),
        ("Phi", "model.final_layernorm.weight", "model.norm.weight"),
        ("Stablelm", "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.qkv_proj.weight k"),
        ("Stablelm", "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.gate_up_proj.weight 0"),
        ("QWen", "transformer.wte.weight", "model.embed_tokens.weight"),
        ("QWen", "transformer.h.1.attn.c_attn.bias", "model.layers.1.self_attn.qkv_proj.bias"),
        ("QWen", "transformer.h.1.attn.c_proj.weight", "model.layers.1.self_attn.o_proj.weight"),
        ("QWen", "transformer.h.1.mlp.c_proj.weight", "model.layers.1.mlp.down_proj.weight"),
        ("QWen", "transformer.h.1.mlp.w1.weight", "model.layers.1.mlp.gate_up_proj.weight 1"),
        ("QWen", "transformer.h.1.ln_2.weight", "model.layers.1.post_attention_layernorm.weight"),
        (
            "QWen",
            "transformer.h.0.mlp.deepspeed_moe.experts.deepspeed_experts.3.c_proj.weight",
            "model.layers.0.mlp.experts.3.c_proj.weight",
        ),
        (
            "QWen",
            "transformer.image_tower.image_tower.vision_model.encoder.layers.0.self_attn.q_proj.bias",
            "image_tower.vision_model.encoder.layers.0.self_attn.qkv_proj.bias q",
        ),
    ],
)
def test_tensors_are_loaded_into_their_places(family: str, theirs: str, ours: str) -> None:
    [facts] = [each for each in FAMILIES if each.spelling == family]
    mapped = checkpoint_names(facts)._map_name_with_shard(theirs)
    assert mapped is not None
    name, shard = mapped
    assert (name if shard is None else f"{name} {shard}") == ours


@pytest.mark.parametrize("change", [{"qk_layernorm": True}, {"hidden_act": "relu"}])
def test_a_phi_with_other_settings_is_refused(change: dict[str, Any]) -> None:
    [phi] = [each for each in FAMILIES if each.spelling == "Phi"]
    with pytest.raises(ValueError, match="prismoe serves false and 'gelu_new'"):
        phi.decoder(phi.configs[0](**change))
