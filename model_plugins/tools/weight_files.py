"""A checkpoint's weight files (safetensors, or the older pytorch_model*.bin), read one tensor at a time."""

import json
import math
import pickle
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the names of the safetensors format."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What a file says of one of its tensors."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


class WeightFile(ABC):
    """One file of weights."""

    path: Path
    tensors: Mapping[str, TensorInfo]

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU."""


class SafetensorsFile(WeightFile):
    """Read with plain reads, since the pages of a memory map would stay with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
            if not 2 <= length <= size - 8:
                raise ValueError(_cut_short(path))
            header = _json_object(file.read(length), path)
        self._data = 8 + length
        header.pop("__metadata__", None)
        self._offsets = {name: entry["data_offsets"] for name, entry in header.items()}
        if size < self._data + max((end for _, end in self._offsets.values()), default=0):
            raise ValueError(_cut_short(path))
        self.tensors = {
            name: TensorInfo(DTYPES[entry["dtype"]], tuple(entry["shape"])) for name, entry in header.items()
        }

    def read(self, name: str) -> Tensor:
        start, end = self._offsets[name]
        info = self.tensors[name]
        if start == end:
            return torch.empty(info.shape, dtype=info.dtype)
        content = bytearray(end - start)
        with self.path.open("rb") as file:
            file.seek(self._data + start)
            if file.readinto(content) != len(content):
                raise ValueError(_cut_short(self.path))
        return torch.frombuffer(content, dtype=info.dtype).reshape(info.shape)


class TorchFile(WeightFile):
    """A memory map; pickled objects other than tensors are refused (`weights_only`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(
                f"{path} can't be read as a file of weights: it is cut short, or holds more than tensors. "
                "Fetch or save it again."
            ) from error
        self._weights: dict[str, Tensor] = {k: v for k, v in loaded.items() if isinstance(v, Tensor)}
        self.tensors = {name: TensorInfo(w.dtype, tuple(w.shape)) for name, w in self._weights.items()}

    def read(self, name: str) -> Tensor:
        return self._weights[name]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, safetensors where it has both kinds."""
    for index, pattern in (
        ("model.safetensors.index.json", "*.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model*.bin"),
    ):
        if (folder / index).is_file():
            weight_map = _json_object((folder / index).read_bytes(), folder / index).get("weight_map", {})
            files = [folder / name for name in sorted(set(weight_map.values()))]
            if missing := [file.name for file in files if not file.is_file()]:
                raise ValueError(f"{folder} lacks {', '.join(missing)}, which its {index} names.")
        else:
            files = sorted(folder.glob(pattern))
        if files:
            return files
    raise ValueError(f"{folder} has no weights (*.safetensors or pytorch_model*.bin).")


def open_weights(folder: Path) -> Iterator[WeightFile]:
    """Each of a checkpoint's weight files, opened one after the other."""
    for path in weight_files(folder):
        yield SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def _json_object(content: bytes, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(content))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Fetch it again.") from error


def _cut_short(path: Path) -> str:
    return f"{path} is cut short or no safetensors file: fetch it again."
