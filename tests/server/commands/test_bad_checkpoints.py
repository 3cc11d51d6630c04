"""A checkpoint that can't be served ends `prismoe serve` with one sentence, before an engine starts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.model_plugins.engine import PHI
from tests.paths import DATA
from tests.server.running import Command

pytestmark = pytest.mark.server


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200_000])


def cut_config(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text()[:100])


def lose_everything(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def lose_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def ask_for_too_many_experts(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["moe"]["top_k_experts"] = 5
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (cut_weights, "model.safetensors is cut short, or is not a safetensors file"),
        (cut_config, "config.json is not JSON"),
        (lose_everything, "holds no config.json, so it is not a checkpoint."),
        (lose_a_tensor, "lacks the tensor lm_head.weight, which its config.json asks for."),
        (ask_for_too_many_experts, "top_k is 5: give a number from 1 to the layer's 4 experts."),
    ],
)
def test_one_sentence(tmp_path: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    shutil.copytree(DATA / "openai", tmp_path / "openai")
    folder = shutil.copytree(PHI, tmp_path / "phi")
    spoil(folder)
    command = Command(tmp_path / "log", "serve", str(folder), "--port", "0")
    assert command.wait() == 1
    (message,) = [line for line in command.output.splitlines() if line.startswith("prismoe: ")]
    assert sentence in message
    assert command.output.splitlines()[-1] == message
    assert "Traceback" not in command.output
