"""Finds a checkpoint or a tower by its folder or by its name on the Hugging Face Hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError

from prismoe.model_plugins.files.weight_files import weight_files

NOT_NEEDED = ["*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf", "*.onnx"]


def checkpoint_folder(model: str, revision: str | None = None, cache: str | None = None) -> Path:
    """The folder of `model`: `model` itself, or its snapshot in the local hub cache, downloaded if allowed.

    Raises ValueError where there is no such folder, and no snapshot can be downloaded.
    """
    if Path(model).is_dir():
        return Path(model)
    try:
        snapshot = Path(snapshot_download(model, revision=revision, cache_dir=cache, local_files_only=True))
        weight_files(snapshot)  # A cache may hold only a part of a checkpoint.
    except HFValidationError as error:
        raise ValueError(f"{model} is neither a folder nor a name on the Hugging Face Hub.") from error
    except (OSError, ValueError) as error:
        missing = error
    else:
        return snapshot
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"{model} is not a folder, the local Hugging Face cache does not hold all of it, and "
            f"HF_HUB_OFFLINE is set. {_advice(model)}"
        ) from missing
    try:
        return Path(snapshot_download(model, revision=revision, cache_dir=cache, ignore_patterns=NOT_NEEDED))
    except Exception as error:  # Whatever the Hub's client and its HTTP library raise.
        raise ValueError(
            f"{model} is not a folder, and it could not be downloaded ({_reason(error)}). {_advice(model)}"
        ) from error


def files_from_hub(name: str, files: Sequence[str]) -> Path:
    """The folder in the local hub cache with these files of `name`, downloaded if allowed.

    Raises ValueError with the reason, a part of a sentence, where they are not available.
    """
    try:
        snapshot = Path(snapshot_download(name, local_files_only=True))
        if all((snapshot / file).is_file() for file in files):
            return snapshot
    except (OSError, ValueError):
        pass  # The cache holds none of it, or the name is not valid.
    if constants.HF_HUB_OFFLINE:
        raise ValueError("not in the local Hugging Face cache, and HF_HUB_OFFLINE is set")
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # Whatever the Hub's client and its HTTP library raise.
        raise ValueError(_reason(error)) from error


def hub_name(name: str) -> str | None:
    """The Hub name in `name`, which may also be a path into a hub cache; None where it has none."""
    cached = re.search(r"(?:^|[/\\])models--([^/\\]+?)--([^/\\]+)", name)
    found = f"{cached[1]}/{cached[2]}" if cached else name
    return found if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", found) else None


def _advice(name: str) -> str:
    return f"Fetch it with `hf download {name}`, or give the folder it is in."


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
