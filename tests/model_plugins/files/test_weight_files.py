"""Weight files are found and read like in vLLM, and a damaged one gives an error message."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prismoe.model_plugins.files.weight_files import read_json, stored_shapes, stored_tensors, weight_files

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(4)}
SHAPES = {"a.weight": (2, 3), "b.bias": (4,)}


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_shapes_and_tensors_of_both_formats(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    torch.save({"optimizer": 1}, tmp_path / "training_args.bin")
    assert stored_shapes(tmp_path) == SHAPES
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]
    assert stored_shapes(tmp_path) == SHAPES


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "before torch 1.6"])
def test_old_bin_files(tmp_path: Path, zip_format: bool) -> None:
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zip_format)
    assert stored_shapes(tmp_path) == SHAPES
    ((name, weight),) = stored_tensors(tmp_path, "a.")
    assert name == "a.weight" and weight.equal(WEIGHTS[name])


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "before torch 1.6"])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zip_format: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Malicious()}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(ValueError, match="could run code"):
        stored_shapes(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Malicious()}))
    with pytest.raises(ValueError, match="could run code"):
        stored_shapes(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_truncated_file(tmp_path: Path, name: str, keep: float) -> None:
    file = tmp_path / name
    save_file(WEIGHTS, file) if file.suffix == ".safetensors" else torch.save(WEIGHTS, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=f"{name} is cut short"):
        stored_shapes(tmp_path)


def test_a_missing_shard(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model-00001-of-00002.safetensors")
    shards = {"a.weight": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ValueError, match=r"names model-00002-of-00002.safetensors, which is not"):
        weight_files(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        weight_files(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="merge it into its base model"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"), [('{"a": ', "is not JSON"), ("[]", "does not hold a JSON object")]
)
def test_json_that_is_none(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_json(tmp_path / "config.json")
