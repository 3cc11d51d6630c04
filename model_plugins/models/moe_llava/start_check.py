"""Checks a MoE-LLaVA checkpoint and its settings before vLLM starts an engine."""

from pathlib import Path

from transformers import PretrainedConfig
from vllm.config import VllmConfig
from vllm.logger import init_logger

from prismoe.model_plugins.files.hub import checkpoint_folder
from prismoe.model_plugins.files.weight_files import stored_shapes
from prismoe.model_plugins.models.moe_llava.config import (
    MOST_REQUEST_EXPERTS,
    check_servable,
    routing_in_force,
)
from prismoe.model_plugins.models.moe_llava.families import family_of
from prismoe.model_plugins.models.moe_llava.names import RENDERER
from prismoe.model_plugins.models.moe_llava.quantization import check_quantization
from prismoe.model_plugins.models.moe_llava.tensors import TensorList
from prismoe.model_plugins.models.moe_llava.tower import (
    find_whole_tower,
    tokens_per_image,
    tower_config,
    tower_shapes,
)
from prismoe.model_plugins.routing.registry import RoutingInForce
from prismoe.model_plugins.vllm_seams.check import check
from prismoe.model_plugins.vllm_seams.engine import overridden, scheduler, step_watch
from prismoe.model_plugins.worker.engine_checks import check_engine, check_request_engine
from prismoe.model_plugins.worker.engine_options import operator_settings, use_routed_worker

LOAD_FORMATS = ("auto", "hf", "safetensors", "fastsafetensors", "pt")
"""vLLM's --load-format values that read a checkpoint's own files."""
NO_SHADOW = (
    "A shadow policy works beside the routers of vLLM's own models, and a MoE-LLaVA checkpoint has prismoe's "
    "routers: leave the setting shadow out, or put the policy in force with routing."
)

logger = init_logger("vllm.prismoe.checkpoint")


def check_start(vllm_config: VllmConfig) -> None:
    """Raise ValueError for a wrong checkpoint or setting, in the process that the user started."""
    check([*overridden.NEEDS, *scheduler.NEEDS, *step_watch.NEEDS])
    use_routed_worker(vllm_config)
    model, load = vllm_config.model_config, vllm_config.load_config
    config = model.hf_config
    if load.load_format in LOAD_FORMATS:
        model.model = str(checkpoint_folder(model.model, model.revision, load.download_dir))
    check_servable(config)
    settings = operator_settings(vllm_config)
    if settings.shadow is not None:
        raise ValueError(NO_SHADOW)
    in_force = routing_in_force(config, settings.routing)
    # The processor of requests sees the checkpoint's config, but not the operator's settings.
    setattr(config, MOST_REQUEST_EXPERTS, in_force.most_request_experts)
    check_engine(
        vllm_config,
        in_force.needs_whole_images,
        tokens_per_image(config, model.model),
        in_force.needs_whole_requests,
    )
    if in_force.experts_by_request_layer or in_force.needs_whole_requests:
        check_request_engine(vllm_config)
    check_quantization(model, family_of(config))
    model.tokenizer_mode = RENDERER
    if not model.skip_tokenizer_init:
        check_tokenizer(config, Path(model.tokenizer))
    if load.load_format in LOAD_FORMATS:
        unused = check_weights(config, Path(model.model), in_force)
        if unused:
            logger.info(
                "Serving leaves out %d tensors of the checkpoint that it does not use, such as %s.",
                len(unused),
                unused[0],
            )


def check_tokenizer(config: PretrainedConfig, folder: Path) -> None:
    """Raise ValueError where a local folder lacks the files of its tokenizer."""
    forms = family_of(config).tokenizer_files
    if folder.is_dir() and not any(all((folder / name).is_file() for name in form) for form in forms):
        named = ", or ".join(" and ".join(form) for form in forms)
        raise ValueError(f"{folder} holds no tokenizer ({named}): copy it there.")


def check_weights(config: PretrainedConfig, folder: Path, in_force: RoutingInForce) -> list[str]:
    """The names of the checkpoint's tensors that serving does not use, from its files' headers.

    Raises ValueError where a file is damaged, or a tensor is missing, misshapen or unexpected.
    """
    tensors = TensorList(config, tower_config(config.mm_image_tower, str(folder)), in_force)
    stored = stored_shapes(folder)
    if not any(name.startswith(tensors.tower_prefix) for name in stored):
        try:
            shapes = tower_shapes(find_whole_tower(config.mm_image_tower, str(folder)))
        except ValueError as error:
            raise ValueError(
                f"The checkpoint holds no weights of its image tower {config.mm_image_tower!r}, and the "
                f"tower's own weights are not available. {error}"
            ) from error
        stored |= {tensors.tower_prefix + name: shape for name, shape in shapes.items()}
    unused = [name for name, shape in stored.items() if not tensors.is_used(name, shape)]
    tensors.check_complete(stored)
    return unused
