"""A vLLM engine that tools ask about pictures, with the options that the user typed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL.Image import Image
from vllm import LLM, EngineArgs
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from prismoe.model_plugins.worker.engine_options import additional_config, engine_options

MEDIA_PER_PROMPT = {"image": 1, "vision_chunk": 1, "video": 0, "audio": 0}
"""The most media in a prompt. vLLM ignores modalities that a model lacks. Kimi has images as vision
chunks."""
CPU_KV_CACHE_BYTES = 2**30
"""The size of the KV cache on CPU; by default vLLM would take most of the machine's memory."""


def engine_arguments(
    command: str, folder: Path, options: Sequence[str], run_checkpoint_code: bool, **defaults: Any
) -> EngineArgs:
    """vLLM's arguments from the options that the user typed for `prismoe command`.

    Raises SystemExit, as argparse does, for an option that vLLM does not have.
    """
    parser: Any = EngineArgs.add_cli_args(
        FlexibleArgumentParser(
            prog=f"prismoe {command}", usage=f"prismoe {command} MODEL [arguments and options]"
        )
    )
    parser.set_defaults(
        **engine_options(),
        limit_mm_per_prompt=MEDIA_PER_PROMPT,
        # A prompt's token that comes from the cache would use no experts.
        enable_prefix_caching=False,
        disable_log_stats=True,
        max_model_len=-1,  # as long as fits into the KV cache
        **defaults,
    )
    if current_platform.is_cpu():
        parser.set_defaults(enforce_eager=True, kv_cache_memory_bytes=CPU_KV_CACHE_BYTES)
    args = parser.parse_args(list(options))
    if args.trust_remote_code:
        raise ValueError(
            "prismoe does not accept --trust-remote-code. To run the checkpoint's Python files, use "
            "--run-checkpoint-code."
        )
    args.model, args.trust_remote_code = str(folder), run_checkpoint_code
    return EngineArgs.from_cli_args(args)


@contextmanager
def chat_engine(arguments: EngineArgs, routing: Mapping[str, Any] | None) -> Iterator[LLM]:
    """Run an engine with `routing` (None: the checkpoint's own) until the block ends."""
    config = {**arguments.additional_config, **additional_config(routing)}
    llm = LLM.from_engine_args(replace(arguments, additional_config=config))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def chat_about(picture: Image, question: str) -> Any:
    """A user's message with a picture and a question, in vLLM's format."""
    content = [{"type": "image_pil", "image_pil": picture}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]
