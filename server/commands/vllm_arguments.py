"""Parses vLLM's arguments, with prismoe's defaults for those that the user does not give."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from vllm.config import StructuredOutputsConfig
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from prismoe.model_plugins.files.hub import checkpoint_folder, files_from_hub
from prismoe.model_plugins.files.weight_files import read_json, weights_digest
from prismoe.model_plugins.models.moe_llava.config import check_config_file, is_moe_llava
from prismoe.model_plugins.routing.calibrated import Calibrated
from prismoe.model_plugins.vllm_seams.front.cli_args import make_arg_parser, validate_parsed_serve_args
from prismoe.model_plugins.worker.engine_options import engine_options
from prismoe.server.commands.arguments import USAGE
from prismoe.server.commands.unserved_options import refuse_unserved
from prismoe.server.logs.quiet import is_quiet
from prismoe.server.media.origins import AllowedOrigins
from prismoe.server.media.videos.frames import check_media_io
from prismoe.server.settings import ServeSettings

MIB = 2**20
MEDIA_PER_PROMPT = {"image": 8, "video": 1, "vision_chunk": 8}
"""The most media of a request. vLLM ignores modalities that a model lacks. Only Kimi has vision chunks."""

MAX_PORT = 2**16 - 1
NO_DEVICE = (
    "vLLM finds no device that its build can use. If this machine has a GPU, check whether nvidia-smi lists "
    "it. Otherwise install vLLM's CPU build, for example with pip install -e '.[cpu]'."
)
REMOTE_CODE = (
    "prismoe does not take --trust-remote-code. To run the checkpoint's Python files, with all rights of "
    "this server, give --run-checkpoint-code."
)


def parse_vllm_arguments(settings: ServeSettings) -> Namespace:
    """Return vLLM's arguments for these settings. Raises ValueError with a sentence if they are not valid."""
    if not current_platform.device_type:
        raise ValueError(NO_DEVICE)
    routed = engine_options(settings.routing, settings.shadow)
    parser = make_arg_parser(FlexibleArgumentParser(prog="prismoe serve", usage=f"prismoe serve {USAGE}"))
    parser.set_defaults(**_defaults(settings) | routed)
    args: Namespace = parser.parse_args([settings.model, *settings.engine_options])
    folder = checkpoint_folder(settings.model, args.revision, args.download_dir)
    moe_llava = _is_moe_llava(_config_folder(args.hf_config_path, folder))
    if args.trust_request_mm_kwargs is None:
        # A request may choose the numbers of experts of its images. MoE-LLaVA's processor refuses other keys.
        args.trust_request_mm_kwargs = moe_llava
    for routing in (settings.routing, settings.shadow):
        if (calibrated_for := Calibrated.model_of(routing or {})) is not None:
            calibrated_for.check_weights(weights_digest(folder))
    args.model = str(folder)
    args.additional_config = {**(args.additional_config or {}), **routed["additional_config"]}
    refuse_unserved(args, parser)
    if not 0 <= args.port <= MAX_PORT:
        raise ValueError(f"--port is {args.port}: give a number from 0 to {MAX_PORT}.")
    if args.trust_remote_code:
        raise ValueError(REMOTE_CODE)
    args.trust_remote_code = settings.run_checkpoint_code
    check_media_io(args.media_io_kwargs)
    AllowedOrigins(args.allowed_media_domains)  # It raises ValueError for domains that are not valid.
    validate_parsed_serve_args(args)
    return args


def _config_folder(named: str | None, checkpoint: Path) -> Path:
    """Return the folder of config.json: the checkpoint's, or that of `--hf-config-path`."""
    if named is None:
        return checkpoint
    if Path(named).is_dir():
        return Path(named)
    try:
        return files_from_hub(named, ["config.json"])
    except ValueError as error:
        raise ValueError(f"--hf-config-path: the config.json of {named} can't be read ({error}).") from error


def _is_moe_llava(folder: Path) -> bool:
    """Return whether a folder has a MoE-LLaVA's config.json. Raises ValueError if that is not complete."""
    file = folder / "config.json"
    if not file.is_file() and (folder / "params.json").is_file():
        return False  # This is Mistral's own format.
    if file.is_file() and not is_moe_llava(read_json(file)):
        return False
    check_config_file(folder)
    return True


def _defaults(settings: ServeSettings) -> dict[str, Any]:
    defaults: dict[str, Any] = {"trust_request_mm_kwargs": None, "limit_mm_per_prompt": MEDIA_PER_PROMPT}
    # When the server gets a signal to end, running requests have 30 seconds to finish.
    defaults |= {"shutdown_timeout": 30}
    # If white space is allowed, a small model may write nothing else. xgrammar also supports tools' tags.
    compact = StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True)
    # The details of an answer's usage are its image tokens and its cached tokens.
    defaults |= {"structured_outputs_config": compact, "enable_prompt_tokens_details": True}
    if is_quiet():
        defaults |= {"use_tqdm_on_load": False, "uvicorn_log_level": "warning"}
    if settings.bundled:
        # vLLM's own default is 4 GiB of pictures.
        defaults |= {"mm_processor_cache_gb": 0.25}
        defaults |= {"served_model_name": [Path(settings.model).name], "dtype": "float32"}
    elif not Path(settings.model).is_dir():
        defaults["served_model_name"] = [settings.model]
    if current_platform.is_cpu():
        # Compiling takes longer than the whole start of a small model. --no-enforce-eager turns compiling on.
        defaults["enforce_eager"] = True
        # With a given size vLLM does not profile. Its own default is most of the machine's memory.
        defaults["kv_cache_memory_bytes"] = (256 if settings.bundled else 1024) * MIB
    return defaults
