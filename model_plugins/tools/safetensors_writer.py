"""Writes safetensors files tensor by tensor: no more than one tensor is in memory at a time."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from prismoe.model_plugins.tools.weight_files import DTYPE_NAMES, TensorInfo

ALIGNMENT = 8


def write_safetensors(
    path: Path, tensors: Mapping[str, TensorInfo], read: Callable[[str], Tensor]
) -> Iterator[int]:
    """Write the tensors, which `read` gives one after the other; yields each one's size in bytes.

    The widest dtypes come first, so that each tensor lies at a multiple of its own width.
    """
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    with path.open("wb") as file:
        file.write(_header(tensors, order))
        for name in order:
            tensor = read(name).to(tensors[name].dtype).contiguous().reshape(-1)
            file.write(tensor.view(torch.uint8).numpy().data)
            yield tensors[name].size


def _header(tensors: Mapping[str, TensorInfo], order: Sequence[str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        info = tensors[name]
        entries[name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": info.shape,
            "data_offsets": [offset, offset + info.size],
        }
        offset += info.size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    return struct.pack("<Q", len(header)) + header
