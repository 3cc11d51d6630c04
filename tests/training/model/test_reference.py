"""The plain model reproduces the original code's activations on the reference checkpoint."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prismoe.training.model.moe_llava import ModelConfig, MoELLaVA, Tokens, prompt_tokens
from prismoe.training.model.tower import TowerConfig
from tests.paths import DATA

CHECKPOINT, TOWER = DATA / "moe-llava-phi-tiny", DATA / "openai" / "clip-tiny-patch14-56"
IMAGE_TOKEN = 511  # not used in the reference prompts


@pytest.fixture(scope="module")
def model() -> MoELLaVA:
    """The reference checkpoint with its tower."""
    text, tower = (json.loads((folder / "config.json").read_text()) for folder in (CHECKPOINT, TOWER))
    text |= {"moe_layers": text["moe"]["moe_layers_idx"], "routing": {"policy": "topk"}}
    loaded = MoELLaVA(
        ModelConfig(**{name: text[name] for name in ModelConfig.model_fields if name in text}),
        TowerConfig(**{name: tower[name] for name in TowerConfig.model_fields}),
    )
    loaded.load_state_dict(load_file(CHECKPOINT / "model.safetensors"))
    return loaded.float().eval()


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    """The original's activations, without its gating noise."""
    with np.load(CHECKPOINT / "reference_deterministic.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@torch.inference_mode()
def test_picture_prompt(model: MoELLaVA, reference: dict[str, torch.Tensor]) -> None:
    ids = reference["input_ids"][0]
    at = int((ids == -200).nonzero())
    expanded = torch.cat([ids[:at], torch.full((16,), IMAGE_TOKEN), ids[at + 1 :]])[None]
    logits, routings = model(reference["pixel_values"], prompt_tokens(expanded, IMAGE_TOKEN))
    assert (logits - reference["logits"]).abs().max() < 1e-3
    for layer, routing in zip((0, 2), routings, strict=True):
        assert (routing.step.logits_TE - reference[f"layer{layer}_router_logits"]).abs().max() < 1e-4
        assert torch.equal(routing.experts_TA, reference[f"layer{layer}_topk_ids"])


@torch.inference_mode()
def test_text_prompt(model: MoELLaVA, reference: dict[str, torch.Tensor]) -> None:
    tokens: Tokens = prompt_tokens(reference["text_input_ids"], IMAGE_TOKEN)
    logits, routings = model(torch.empty(0, 3, 56, 56), tokens)
    assert (logits - reference["text_logits"]).abs().max() < 1e-3
    assert (routings[1].step.logits_TE - reference["text_layer2_router_logits"]).abs().max() < 1e-4
