"""Weight files are read and written as the safetensors library does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prismoe.model_plugins.tools.safetensors_writer import write_safetensors
from prismoe.model_plugins.tools.weight_files import SafetensorsFile, TorchFile, open_weights

WEIGHTS: dict[str, Tensor] = {
    "odd": torch.arange(3, dtype=torch.int8),
    "half": torch.randn(5, 7).half(),
    "brain": torch.randn(2, 3, 4).bfloat16(),
    "single": torch.randn(4, 4).t(),
    "double": torch.randn(9).double(),
    "long": torch.tensor(-3),
    "flags": torch.tensor([True, False, True]),
    "none": torch.empty(0, 8),
}


def assert_same(actual: dict[str, Tensor]) -> None:
    assert actual.keys() == WEIGHTS.keys()
    for name, weight in WEIGHTS.items():
        assert actual[name].dtype == weight.dtype and actual[name].shape == weight.shape
        assert torch.equal(actual[name], weight)


def test_what_the_library_wrote_is_read(tmp_path: Path) -> None:
    save_file({name: weight.contiguous() for name, weight in WEIGHTS.items()}, tmp_path / "w.safetensors")
    file = SafetensorsFile(tmp_path / "w.safetensors")
    assert_same({name: file.read(name) for name in file.tensors})


def test_what_is_written_the_library_reads(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    (source,) = open_weights(tmp_path)
    assert isinstance(source, TorchFile)
    written = tmp_path / "w.safetensors"
    sizes = list(write_safetensors(written, source.tensors, source.read))
    assert_same(load_file(written))
    assert sum(sizes) == sum(weight.nbytes for weight in WEIGHTS.values())


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "code": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds more than tensors"):
        list(open_weights(tmp_path))


def test_an_index_names_the_files(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"w": torch.ones(1)}, tmp_path / "another.safetensors")
    names = (
        '{"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}}'
    )
    (tmp_path / "model.safetensors.index.json").write_text(names)
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00002\.safetensors"):
        list(open_weights(tmp_path))
    save_file({"v": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    assert [list(file.tensors) for file in open_weights(tmp_path)] == [["w"], ["v"]]
