"""Reads the tensors in a folder's weight files, of any format, each when it is needed."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from prismoe.model_plugins.files.weight_files import load_pickled, open_safetensors, weight_files

DTYPES = {
    "C64": torch.complex64,
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes by their names in the safetensors format, without those that pack several numbers into a
byte."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor's dtype and shape from a file's header, and a function that reads it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.count * self.dtype.itemsize

    def to(self, dtype: torch.dtype | None) -> "LazyTensor":
        """The same tensor in `dtype` if it holds floating-point numbers; None leaves it unchanged."""
        if dtype is None or not self.dtype.is_floating_point:
            return self
        return LazyTensor(dtype, self.shape, lambda: self.read().to(dtype))


def in_memory(tensor: Tensor) -> LazyTensor:
    """A tensor that needs no reading."""
    return LazyTensor(tensor.dtype, tuple(tensor.shape), lambda: tensor)


def lazy_tensors(folder: Path) -> dict[str, LazyTensor]:
    """The tensors in a folder, by name. Raises ValueError where a file is damaged."""
    return {
        name: tensor
        for path in weight_files(folder)
        for name, tensor in (_in_safetensors(path) if path.suffix == ".safetensors" else _in_pickle(path))
    }


def _in_safetensors(path: Path) -> Iterator[tuple[str, LazyTensor]]:
    with open_safetensors(path) as tensors:
        for name in tensors.offset_keys():
            stored = tensors.get_slice(name)
            if (dtype := DTYPES.get(stored.get_dtype())) is None:
                raise ValueError(
                    f"{path} stores {name} as {stored.get_dtype()}, which prismoe can't read: "
                    f"save it as one of {', '.join(DTYPES)}."
                )
            yield name, LazyTensor(dtype, tuple(stored.get_shape()), partial(_read, path, name))


def _read(path: Path, name: str) -> Tensor:
    """Read a tensor through its own memory map: a map that stays open would keep the pages of all tensors."""
    with open_safetensors(path) as tensors:
        return tensors.get_tensor(name)


def _in_pickle(path: Path) -> Iterator[tuple[str, LazyTensor]]:
    for name, tensor in load_pickled(path, "cpu").items():
        yield name, in_memory(tensor)
