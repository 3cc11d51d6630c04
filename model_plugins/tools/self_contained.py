"""Writes a checkpoint that needs nothing beside its own folder."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from prismoe.model_plugins import CHAT_TEMPLATE, register
from prismoe.model_plugins.moe_llava.config import check_servable, routing_in_force
from prismoe.model_plugins.moe_llava.tokenizers import RanksTokenizer
from prismoe.model_plugins.moe_llava.tower import find_tower, tower_image_processor
from prismoe.model_plugins.routing import ROUTING_KEY
from prismoe.model_plugins.routing.registry import RoutingInForce
from prismoe.model_plugins.tools.checkpoint_folder import read_config
from prismoe.model_plugins.tools.safetensors_writer import write_safetensors
from prismoe.model_plugins.tools.weight_files import TensorInfo, WeightFile, open_weights

TOWER_FOLDER = "image_tower"
COPIED = ("generation_config.json", "README.md", "LICENSE*", "NOTICE*")
GB = 10**9


def write_self_contained(
    source: Path,
    folder: Path,
    routing: Mapping[str, Any] | None,
    dtype: str | None,
    max_shard_bytes: int,
) -> None:
    """Write the checkpoint in `source` into `folder`, with the routing that is in force.

    `dtype` is for its floating-point tensors. Raises ValueError or OSError with a sentence where the source
    can't be served.
    """
    settings = read_config(source)
    register()
    config = AutoConfig.from_pretrained(source)
    check_servable(config)
    tower_image_processor(config.mm_image_tower, str(source))
    in_force = routing_in_force(config, routing)
    if in_force.layers:
        settings[ROUTING_KEY] = routing_settings(in_force)
    if dtype is not None:
        settings.pop("dtype", None)  # Younger releases of transformers call it so.
        settings["torch_dtype"] = dtype
    settings["mm_image_tower"] = TOWER_FOLDER
    settings.pop("auto_map", None)  # The code that it names stays behind.
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    _copy_tower(find_tower(config.mm_image_tower, str(source)), folder / TOWER_FOLDER)
    for file in (file for pattern in COPIED for file in source.glob(pattern)):
        shutil.copyfile(file, folder / file.name)
    write_tokenizer(source, folder)
    _write_weights(source, folder, None if dtype is None else getattr(torch, dtype), max_shard_bytes)


def routing_settings(in_force: RoutingInForce) -> dict[str, Any]:
    """What to say in config.json for just this routing: one policy, and the layers that differ."""
    by_layer = {str(layer): routing.policy.model_dump() for layer, routing in in_force.layers.items()}
    common = next(iter(by_layer.values()))
    differing = {layer: policy for layer, policy in by_layer.items() if policy != common}
    return common | ({"layers": differing} if differing else {})


def _copy_tower(tower: Path, folder: Path) -> None:
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(tower / name, folder / name)


def write_tokenizer(source: Path, folder: Path) -> None:
    """tokenizer.json and its settings, in a form that transformers reads by itself."""
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if isinstance(tokenizer, RanksTokenizer):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            pad_token=tokenizer.pad_token,
            model_max_length=tokenizer.model_max_length,
            padding_side=tokenizer.padding_side,
            chat_template=tokenizer.chat_template,
        )
    tokenizer.chat_template = tokenizer.chat_template or CHAT_TEMPLATE.read_text()
    tokenizer.save_pretrained(folder)


def _write_weights(source: Path, folder: Path, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    files = list(open_weights(source))
    origin: dict[str, WeightFile] = {name: file for file in files for name in file.tensors}
    tensors = {name: _as_written(file.tensors[name], dtype) for name, file in origin.items()}
    total = sum(info.size for info in tensors.values())
    if total > (free := shutil.disk_usage(folder).free):
        raise OSError(
            f"{folder.parent} has {free / GB:.1f} GB free, and the weights take {total / GB:.1f} GB."
        )
    shards = _shards(tensors, max_shard_bytes)
    names = _shard_names(len(shards))
    with tqdm(total=total, unit="B", unit_scale=True, desc="Weights") as progress:
        for name, shard in zip(names, shards, strict=True):
            for written in write_safetensors(
                folder / name, shard, lambda tensor: origin[tensor].read(tensor)
            ):
                progress.update(written)
    if len(shards) > 1:
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _as_written(info: TensorInfo, dtype: torch.dtype | None) -> TensorInfo:
    return replace(info, dtype=dtype) if dtype is not None and info.dtype.is_floating_point else info


def _shards(tensors: Mapping[str, TensorInfo], max_bytes: int) -> list[dict[str, TensorInfo]]:
    """The tensors in their order, parted before a shard would be larger than `max_bytes`."""
    shards: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name, info in tensors.items():
        if shards[-1] and size + info.size > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = info
        size += info.size
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{index:05}-of-{count:05}.safetensors" for index in range(1, count + 1)]
