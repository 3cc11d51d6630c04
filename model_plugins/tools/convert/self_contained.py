"""Writes a checkpoint that needs no files outside its own folder."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from prismoe.model_plugins.files.weight_files import read_json
from prismoe.model_plugins.models.moe_llava.config import check_config_file, check_servable, routing_in_force
from prismoe.model_plugins.models.moe_llava.families import family_of
from prismoe.model_plugins.models.moe_llava.start_check import check_weights
from prismoe.model_plugins.models.moe_llava.tensors import TensorList
from prismoe.model_plugins.models.moe_llava.tokenizers import RanksTokenizer
from prismoe.model_plugins.models.moe_llava.tower import (
    VISION,
    find_tower,
    find_whole_tower,
    tower_config,
    tower_image_processor,
)
from prismoe.model_plugins.plugin import register
from prismoe.model_plugins.routing import ROUTING_KEY
from prismoe.model_plugins.routing.registry import RoutingInForce
from prismoe.model_plugins.tools.convert.safetensors_writer import write_sharded
from prismoe.model_plugins.tools.lazy_tensors import LazyTensor, in_memory, lazy_tensors

TOWER_FOLDER = "image_tower"
COPIED = ("generation_config.json", "README.md", "LICENSE*", "NOTICE*")


def write_self_contained(
    source: Path,
    folder: Path,
    routing: Mapping[str, Any] | None,
    dtype: str | None,
    max_shard_bytes: int,
    routers: Mapping[int, Mapping[str, Tensor]] = MappingProxyType({}),
) -> None:
    """Write the checkpoint in `source` to `folder`, with the routing in force.

    `dtype` is for its floating-point tensors; `routers` are the policies' own tensors by layer and name,
    which are written unchanged. Raises ValueError or OSError where the source can't be served.
    """
    check_config_file(source)
    settings = read_json(source / "config.json")
    register()
    config = AutoConfig.from_pretrained(source)
    check_servable(config)
    tower_image_processor(config.mm_image_tower, str(source))
    in_force = routing_in_force(config, routing)
    check_weights(config, source, routing_in_force(config, None) if routers else in_force)
    if in_force.layers:
        settings[ROUTING_KEY] = routing_settings(in_force)
    if dtype is not None:
        settings.pop("dtype", None)  # the name in newer releases of transformers
        settings["torch_dtype"] = dtype
    settings["mm_image_tower"] = TOWER_FOLDER
    settings.pop("auto_map", None)  # the code that it names is not copied
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    _copy_tower(find_tower(config.mm_image_tower, str(source)), folder / TOWER_FOLDER)
    for file in (file for pattern in COPIED for file in source.glob(pattern)):
        shutil.copyfile(file, folder / file.name)
    write_tokenizer(source, folder, family_of(config).chat_template)
    names = TensorList(config, tower_config(config.mm_image_tower, str(source)), in_force)
    tensors = lazy_tensors(source)
    if not any(name.startswith(names.tower_prefix) for name in tensors):
        tensors |= _tower_tensors(find_whole_tower(config.mm_image_tower, str(source)), names.tower_prefix)
    torch_dtype = None if dtype is None else getattr(torch, dtype)
    converted = {name: tensor.to(torch_dtype) for name, tensor in tensors.items()}
    own = {
        names.router_parameter(layer, name): in_memory(tensor)
        for layer, parameters in routers.items()
        for name, tensor in parameters.items()
    }
    write_sharded(folder, converted | own, max_shard_bytes)


def routing_settings(in_force: RoutingInForce) -> dict[str, Any]:
    """The settings in config.json for this routing: one policy, and the layers that differ."""
    by_layer = {str(layer): routing.policy.model_dump() for layer, routing in in_force.layers.items()}
    common = next(iter(by_layer.values()))
    differing = {layer: policy for layer, policy in by_layer.items() if policy != common}
    return common | ({"layers": differing} if differing else {})


def _tower_tensors(tower: Path, prefix: str) -> dict[str, LazyTensor]:
    """The tower's tensors, named as in a checkpoint."""
    return {prefix + name: tensor for name, tensor in lazy_tensors(tower).items() if name.startswith(VISION)}


def _copy_tower(tower: Path, folder: Path) -> None:
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(tower / name, folder / name)


def write_tokenizer(source: Path, folder: Path, chat_template: Path) -> None:
    """Write tokenizer.json and its settings, in a form that transformers reads without other code.

    `chat_template` is for a tokenizer that has none.
    """
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
    tokenizer.chat_template = tokenizer.chat_template or chat_template.read_text()
    tokenizer.save_pretrained(folder)
