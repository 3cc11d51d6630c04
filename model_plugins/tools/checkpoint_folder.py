"""The first look at a checkpoint's folder, before anything heavy is imported."""

import json
from pathlib import Path
from typing import Any

from prismoe.model_plugins import FAMILIES

MODEL_TYPES = tuple(f"{kind}llava_{module}" for module in FAMILIES for kind in ("moe_", ""))


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a MoE-LLaVA checkpoint. Raises ValueError with a sentence where there is none."""
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder {folder}. A model on a hub is fetched with "
            "`hf download NAME --local-dir FOLDER`."
        )
    file = folder / "config.json"
    if not file.is_file():
        what = "has no config.json" if any(folder.iterdir()) else "is empty"
        raise ValueError(f"{folder} {what}, so it is no checkpoint.")
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}.") from error
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"{folder} is no MoE-LLaVA checkpoint: its config.json gives the model_type {model_type!r}, "
            f"and prismoe serves {', '.join(MODEL_TYPES)}."
        )
    return dict(config)


def family(config: dict[str, Any]) -> str:
    """The decoder's family: phi, stablelm or qwen."""
    return str(config["model_type"]).rpartition("_")[2]
