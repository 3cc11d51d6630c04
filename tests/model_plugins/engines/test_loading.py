"""An old pickled checkpoint without tower weights gives the authors' logits (float32)."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.model_plugins.engine import PHI, engine, greedy, prompt_logits
from tests.paths import DATA

META = json.loads((PHI / "meta.json").read_text())
REFERENCE = np.load(PHI / "reference_deterministic.npz")
LEFTOVER = "model.layers.0.self_attn.rotary_emb.inv_freq"


def unused_tensors(model: Any) -> list[str]:
    return list(model.unused_tensors)


def test_an_old_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(DATA / "openai", tmp_path / "openai")
    folder = shutil.copytree(PHI, tmp_path / "phi")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    decoder = {name: weight for name, weight in weights.items() if ".image_tower." not in name}
    names = list(decoder)
    for index, part in enumerate((names[::2], names[1::2]), start=1):
        shard = {name: decoder[name] for name in part}
        torch.save(shard | {LEFTOVER: torch.zeros(3)}, folder / f"pytorch_model-0000{index}-of-00002.bin")
    image = {"image": Image.open(DATA / "image.png")}
    prompt: Any = {"prompt": META["prompt"], "multi_modal_data": image}
    with engine(folder) as llm:
        (output,) = llm.generate(prompt, greedy(1))
        (unused,) = llm.apply_model(unused_tensors)
    np.testing.assert_allclose(prompt_logits(output), REFERENCE["logits"][0], atol=1e-3)
    assert LEFTOVER in unused
    assert all(name == LEFTOVER or name.startswith("model.image_tower.") for name in unused)
