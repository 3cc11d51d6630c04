"""Every tensor of a checkpoint is used or a known leftover. Any other stops the start with its name."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from vllm.engine.arg_utils import EngineArgs

from prismoe.model_plugins.models.moe_llava.config import routing_in_force
from prismoe.model_plugins.models.moe_llava.model import MoELLaVAForCausalLM
from prismoe.model_plugins.models.moe_llava.start_check import check_tokenizer, check_weights
from prismoe.model_plugins.models.moe_llava.tensors import TensorList
from prismoe.model_plugins.models.moe_llava.tower import tower_config
from prismoe.model_plugins.plugin import register
from prismoe.model_plugins.worker.engine_options import engine_options
from tests.model_plugins.engine import PHI
from tests.model_plugins.tiny_checkpoints import FAMILIES, MOE, TOWERS, make_checkpoint
from tests.paths import DATA

register()
Weights = dict[str, torch.Tensor]


def check(folder: Path) -> list[str]:
    config = AutoConfig.from_pretrained(folder)
    return check_weights(config, folder, routing_in_force(config, operator=None))


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    """A copy of the Phi fixture, and the folder of its tower with weights."""
    shutil.copytree(DATA / "openai", tmp_path / "openai")
    return shutil.copytree(PHI, tmp_path / "phi")


def rewrite(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["stablelm", "qwen"])
def test_the_authors_tensor_lists(family: str) -> None:
    """The authors' code wrote the lists. They are complete except for the tower's last layer and norm."""
    folder = DATA / "names" / family
    config = AutoConfig.from_pretrained(folder)
    vision = tower_config(config.mm_image_tower, str(PHI))
    tensors = TensorList(config, vision, routing_in_force(config, operator=None))
    lines = [line.split("\t") for line in (folder / "tensor_names.txt").read_text().splitlines()]
    used = {name for name, shape, _ in lines if tensors.is_used(name, tuple(json.loads(shape)))}
    tensors.check_complete(used)
    left_out = {name for name, _, _ in lines} - used
    assert len(left_out) == 18
    assert all(".image_tower.vision_model." in name for name in left_out)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tower", TOWERS)
def test_all_families_and_towers(family: str, tower: str, tmp_path: Path) -> None:
    unused = check(make_checkpoint(tmp_path, family, tower, moe=MOE | {"use_residual": True}))
    assert all(
        ".vision_model.encoder.layers.2." in name or "post_layernorm" in name or ".head." in name
        for name in unused
    )


def test_dense_layers(tmp_path: Path) -> None:
    assert check(make_checkpoint(tmp_path, "qwen", moe=None))


GATE = "model.layers.0.mlp.deepspeed_moe.gate.wg.weight"
FC1 = "model.layers.2.mlp.deepspeed_moe.experts.deepspeed_experts.3.fc1.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda w: {n: t for n, t in w.items() if n != GATE},
            f"lacks the tensor {GATE}, which the routing policy topk asks for",
        ),
        (
            lambda w: w | {GATE: w[GATE][:3].clone()},
            rf"{GATE} has the shape \[3, 64\], .* asks for \[4, 64\]",
        ),
        (lambda w: {n.replace(FC1, "fc"): t for n, t in w.items()}, "the tensor fc, which its config"),
        (lambda w: w | {f"{FC1}.lora_A": torch.ones(2)}, "unmerged LoRA weights"),
    ],
    ids=["missing", "misshapen", "unknown", "LoRA"],
)
def test_wrong_tensors_stop_the_start(phi: Path, change: Any, sentence: str) -> None:
    rewrite(phi, change)
    with pytest.raises(ValueError, match=sentence):
        check(phi)


def test_known_leftovers_are_named(phi: Path) -> None:
    extra = ["model.layers.1.self_attn.rotary_emb.inv_freq", "lm_head.bias"]
    rewrite(phi, lambda weights: weights | {name: torch.zeros(4) for name in extra})
    assert set(extra) <= set(check(phi))


def test_vllm_refuses_before_it_starts_an_engine(phi: Path) -> None:
    rewrite(phi, lambda weights: {name: weight for name, weight in weights.items() if name != GATE})
    with pytest.raises(ValueError, match=f"lacks the tensor {GATE}"):
        EngineArgs(model=str(phi), **engine_options()).create_engine_config()


def without_tower(weights: Weights) -> Weights:
    return {name: weight for name, weight in weights.items() if ".image_tower." not in name}


def test_a_tower_that_is_not_in_the_checkpoint_comes_from_its_own_folder(phi: Path) -> None:
    rewrite(phi, without_tower)
    check(phi)
    (phi.parent / "openai" / "clip-tiny-patch14-56" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no weights of its image tower .*`hf download openai/clip-tiny"):
        check(phi)


def test_a_part_of_a_tower_is_refused(phi: Path) -> None:
    lost = "model.image_tower.image_tower.vision_model.pre_layrnorm.bias"
    rewrite(phi, lambda weights: {name: weight for name, weight in weights.items() if name != lost})
    with pytest.raises(ValueError, match=f"lacks the tensor {lost}"):
        check(phi)


def test_a_missing_tokenizer_file(phi: Path) -> None:
    config = AutoConfig.from_pretrained(phi)
    check_tokenizer(config, phi)
    (phi / "merges.txt").unlink()
    with pytest.raises(
        ValueError, match=r"holds no tokenizer \(tokenizer.json, or vocab.json and merges.txt\)"
    ):
        check_tokenizer(config, phi)


def test_a_routing_policys_own_parameters(phi: Path) -> None:
    config = AutoConfig.from_pretrained(phi)
    in_force = routing_in_force(config, operator={"policy": "gmm"})
    with pytest.raises(
        ValueError, match=r"lacks the tensor .*router\..* which the routing policy gmm asks for"
    ):
        check_weights(config, phi, in_force)


@pytest.mark.parametrize(("rank", "added"), [(0, [1.0, 2.0]), (1, [0.0, 0.0])])
def test_only_one_rank_adds_the_last_bias_of_experts(rank: int, added: list[float]) -> None:
    """Ranks sum the outputs of their experts."""
    experts = SimpleNamespace(moe_config=SimpleNamespace(tp_rank=rank))
    layers = {2: SimpleNamespace(mlp=SimpleNamespace(experts=experts))}
    model: Any = SimpleNamespace(model=SimpleNamespace(layers=layers), experts_by_layer={2: 4})
    assert MoELLaVAForCausalLM._on_one_rank(model, torch.tensor([1.0, 2.0])).tolist() == added
