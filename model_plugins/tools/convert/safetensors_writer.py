"""Writes safetensors files tensor by tensor, so that no more than one is in memory at a time."""

import json
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from tqdm import tqdm

from prismoe.model_plugins.tools.lazy_tensors import DTYPE_NAMES, LazyTensor

ALIGNMENT = 8
GB = 10**9


def write_sharded(folder: Path, tensors: Mapping[str, LazyTensor], max_bytes: int) -> None:
    """Write files with at most `max_bytes` of tensors each, and an index if there are several.

    A larger tensor gets its own file. Shows a progress bar. Raises OSError where the disk is too full.
    """
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_bytes,
    )
    total = split.metadata["total_size"]
    if total > (free := shutil.disk_usage(folder).free):
        raise OSError(
            f"The disk of {folder.parent} has {free / GB:.1f} GB free, and the weights need "
            f"{total / GB:.1f} GB: make room, or name another destination."
        )
    with tqdm(total=total, unit="B", unit_scale=True, desc="Weights") as progress:
        for file, names in split.filename_to_tensors.items():
            for written in write_safetensors(folder / file, {name: tensors[name] for name in names}):
                progress.update(written)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_safetensors(path: Path, tensors: Mapping[str, LazyTensor]) -> Iterator[int]:
    """Write one file; yields each tensor's size in bytes once it is written.

    The widest dtypes come first, so that each tensor starts at a multiple of its width.
    """
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    with path.open("wb") as file:
        file.write(_header(tensors, order))
        for name in order:
            tensor = tensors[name].read().contiguous().reshape(-1)
            file.write(tensor.view(torch.uint8).numpy().data)
            yield tensors[name].size


def _header(tensors: Mapping[str, LazyTensor], order: Sequence[str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in DTYPE_NAMES:
            raise ValueError(
                f"{name} is of {tensor.dtype}, which a safetensors file can't hold: "
                f"save it as one of {', '.join(DTYPE_NAMES.values())}."
            )
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [offset, offset + tensor.size],
        }
        offset += tensor.size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    return struct.pack("<Q", len(header)) + header
