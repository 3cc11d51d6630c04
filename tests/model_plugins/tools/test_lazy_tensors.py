"""Weight files are read and written as the safetensors library does."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prismoe.model_plugins.tools.lazy_tensors import lazy_tensors
from prismoe.model_plugins.tools.safetensors_writer import write_safetensors

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
    assert_same({name: tensor.read() for name, tensor in lazy_tensors(tmp_path).items()})


def test_what_is_written_the_library_reads(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    sizes = list(write_safetensors(tmp_path / "w.safetensors", lazy_tensors(tmp_path)))
    assert_same(load_file(tmp_path / "w.safetensors"))
    assert sum(sizes) == sum(weight.nbytes for weight in WEIGHTS.values())
