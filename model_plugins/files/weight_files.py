"""Finds and reads the weight files that vLLM reads from a folder: their headers and tensors.

Every error is a ValueError whose message is a sentence for the user.
"""

import json
import pickle
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

Shape: TypeAlias = tuple[int, ...]

NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")
"""Files that training leaves beside .bin weights; vLLM reads every other .bin file."""

DIGESTED_PARTS, DIGESTED_BYTES = 16, 2**16
"""The number of parts of a file that its digest reads, and their length in bytes."""


def read_json(file: Path) -> dict[str, Any]:
    """Read the JSON object in `file`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} does not hold a JSON object: fetch it again.")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files that vLLM reads weights from: the safetensors files if there are any, else the .bin files."""
    safetensors = sorted(folder.glob("*.safetensors"))
    if index := _in_index(folder / "model.safetensors.index.json"):
        return index
    if safetensors:
        return safetensors
    _in_index(folder / "pytorch_model.bin.index.json")
    pickled = sorted(file for file in folder.glob("*.bin") if not file.name.endswith(NOT_WEIGHTS))
    if (folder / "adapter_config.json").is_file() and not (folder / "pytorch_model.bin").is_file():
        raise ValueError(f"{folder} holds a LoRA adapter: merge it into its base model and serve the result.")
    if not pickled:
        raise ValueError(f"{folder} holds no weights (*.safetensors or *.bin): fetch them.")
    return pickled


def _in_index(index: Path) -> list[Path]:
    """The files that an index names, which must all exist; an empty list without an index."""
    if not index.is_file():
        return []
    files = sorted({index.parent / name for name in read_json(index).get("weight_map", {}).values()})
    for file in files:
        if not file.is_file():
            raise ValueError(f"{index} names {file.name}, which is not in its folder: fetch it.")
    return files


def weights_digest(folder: Path) -> str:
    """A SHA-256 that identifies these weights, over the files' sizes and some parts of their contents.

    Reading all of a large checkpoint would take minutes, and training changes nearly all weights.
    """
    digest = sha256()
    for file in weight_files(folder):
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as content:
            for part in range(DIGESTED_PARTS):
                content.seek(max(0, size - DIGESTED_BYTES) * part // (DIGESTED_PARTS - 1))
                digest.update(content.read(DIGESTED_BYTES))
    return digest.hexdigest()


def stored_shapes(folder: Path) -> dict[str, Shape]:
    """The shapes of the tensors in a folder's weight files, by name, read from the headers alone."""
    return {name: shape for file in weight_files(folder) for name, shape in _shapes_in(file)}


def _shapes_in(file: Path) -> list[tuple[str, Shape]]:
    if file.suffix == ".safetensors":
        with open_safetensors(file) as tensors:
            return [(name, tuple(tensors.get_slice(name).get_shape())) for name in tensors.offset_keys()]
    return [(name, tuple(tensor.shape)) for name, tensor in load_pickled(file, "meta").items()]


def stored_tensors(folder: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a folder's weight files whose names start with `prefix`, one in memory at a time."""
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            with open_safetensors(file) as tensors:
                for name in tensors.offset_keys():
                    if name.startswith(prefix):
                        yield name, tensors.get_tensor(name)
        else:
            pickled = load_pickled(file, "cpu").items()
            yield from ((name, tensor) for name, tensor in pickled if name.startswith(prefix))


def open_safetensors(file: Path) -> Any:
    """Open a file with the safetensors library; a context manager."""
    try:
        return safe_open(file, "pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is cut short, or is not a safetensors file ({error}): fetch it again."
        ) from error


def load_pickled(file: Path, device: str) -> dict[str, Tensor]:
    """Load a .bin file's tensors without running its code; on device "meta" their contents stay unread."""
    try:
        content = torch.load(file, map_location=device, weights_only=True, mmap=_is_zip(file))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} holds more than tensors, which could run code when loaded, so it is not read: "
            "save its weights as safetensors."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{file} is cut short, or is not a file of weights: fetch it again.") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file} does not hold weights by name: save them as safetensors.")
    return content


def _is_zip(file: Path) -> bool:
    """Whether torch wrote the file in its current format; only that can be memory-mapped."""
    with file.open("rb") as start:
        return start.read(2) == b"PK"
