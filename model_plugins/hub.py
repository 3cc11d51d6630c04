"""Where a checkpoint is that was named by its folder or by its name on the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError

from prismoe.model_plugins.weight_files import weight_files

NOT_NEEDED = ["*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf", "*.onnx"]


def checkpoint_folder(model: str, revision: str | None = None, cache: str | None = None) -> Path:
    """The folder of `model`: itself, or the local hub cache's snapshot, downloaded where that is allowed.

    Raises ValueError with a sentence where it can't be had.
    """
    if Path(model).is_dir():
        return Path(model)
    try:
        snapshot = Path(snapshot_download(model, revision=revision, cache_dir=cache, local_files_only=True))
        weight_files(snapshot)  # A cache may hold a part of a checkpoint.
    except HFValidationError as error:
        raise ValueError(f"{model} is neither a folder nor a name on the Hugging Face Hub.") from error
    except (OSError, ValueError) as error:
        missing = error
    else:
        return snapshot
    advice = f"Fetch it with `hf download {model}`, or give the folder it is in."
    if constants.HF_HUB_OFFLINE:
        raise ValueError(
            f"{model} is no folder, it is not whole in the local Hugging Face cache, and HF_HUB_OFFLINE is "
            f"set. {advice}"
        ) from missing
    try:
        return Path(snapshot_download(model, revision=revision, cache_dir=cache, ignore_patterns=NOT_NEEDED))
    except Exception as error:  # Whatever the Hub's client and its HTTP library raise.
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"{model} is no folder, and it could not be downloaded ({reason}). {advice}"
        ) from error
