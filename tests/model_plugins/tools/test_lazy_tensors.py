"""Weight files are read and written like the safetensors library does."""

from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prismoe.model_plugins.tools.convert.safetensors_writer import write_safetensors
from prismoe.model_plugins.tools.lazy_tensors import lazy_tensors

WEIGHTS: dict[str, Tensor] = {
    "odd": torch.arange(3, dtype=torch.int8),
    "half": torch.randn(5, 7).half(),
    "brain": torch.randn(2, 3, 4).bfloat16(),
    "single": torch.randn(4, 4).t(),
    "double": torch.randn(9).double(),
    "long": torch.tensor(-3),
    "flags": torch.tensor([True, False, True]),
    "none": torch.empty(0, 8),
    "complex": torch.tensor([[1 + 2j, -3j]], dtype=torch.complex64),
    **{
        str(dtype): torch.tensor([0, 1, 7], dtype=dtype)
        for dtype in (torch.uint16, torch.uint32, torch.uint64, torch.int16, torch.int32, torch.uint8)
    },
    **{
        str(dtype): torch.tensor([0.5, 1, 4]).to(dtype)
        for dtype in (
            torch.float8_e4m3fn,
            torch.float8_e4m3fnuz,
            torch.float8_e5m2,
            torch.float8_e5m2fnuz,
            torch.float8_e8m0fnu,
        )
    },
}


def assert_same(actual: dict[str, Tensor]) -> None:
    assert actual.keys() == WEIGHTS.keys()
    for name, weight in WEIGHTS.items():
        assert actual[name].dtype == weight.dtype and actual[name].shape == weight.shape
        assert actual[name].tolist() == weight.tolist()


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    save_file({name: weight.contiguous() for name, weight in WEIGHTS.items()}, tmp_path / "w.safetensors")
    assert_same({name: tensor.read() for name, tensor in lazy_tensors(tmp_path).items()})


def test_a_tensor_that_was_read_leaves_the_memory(tmp_path: Path) -> None:
    save_file({str(number): torch.ones(2**22) for number in range(8)}, tmp_path / "w.safetensors")
    first, *others = lazy_tensors(tmp_path).values()
    assert first.read().sum() == 2**22
    before = psutil.Process().memory_info().rss
    for tensor in others:
        assert tensor.read().sum() == 2**22
    assert psutil.Process().memory_info().rss - before < first.size


def test_the_library_reads_our_files(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    sizes = list(write_safetensors(tmp_path / "w.safetensors", lazy_tensors(tmp_path)))
    assert_same(load_file(tmp_path / "w.safetensors"))
    assert sum(sizes) == sum(weight.nbytes for weight in WEIGHTS.values())


def test_packed_numbers_are_refused_with_a_message(tmp_path: Path) -> None:
    packed = torch.zeros(2, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    save_file({"packed": packed}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors stores packed as F4, .*: save it as one of C64, "):
        lazy_tensors(tmp_path)


def test_values_outside_the_format_are_refused_with_a_message(tmp_path: Path) -> None:
    torch.save({"wide": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"wide is of torch\.complex128, .*: save it as one of C64, "):
        list(write_safetensors(tmp_path / "w.safetensors", lazy_tensors(tmp_path)))
