"""Asks a model questions in an engine of vLLM's, under one routing."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from PIL import Image, ImageOps
from tqdm import tqdm
from vllm import LLM, EngineArgs, RequestOutput, SamplingParams
from vllm.multimodal.image import convert_image_mode
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.tools.evaluate.questions import Question
from prismoe.model_plugins.tools.evaluate.run import Run
from prismoe.model_plugins.worker.engine_options import additional_config, engine_options

BATCH = 256
"""How many questions vLLM gets at a time: it keeps the pictures of all that it has."""
MEDIA_PER_PROMPT = {"image": 1, "vision_chunk": 1, "video": 0, "audio": 0}
"""vLLM reads those of a model's own modalities. Kimi has images as vision chunks."""
CPU_KV_CACHE_BYTES = 2**30
"""vLLM would take most of the machine's memory."""


def engine_arguments(folder: Path, options: Sequence[str], run_checkpoint_code: bool) -> EngineArgs:
    """vLLM's arguments by the options that the user typed.

    Raises SystemExit, as argparse does, where one is not vLLM's.
    """
    parser: Any = EngineArgs.add_cli_args(
        FlexibleArgumentParser(prog="prismoe evaluate", usage="prismoe evaluate MODEL [options]")
    )
    parser.set_defaults(
        **engine_options(),
        limit_mm_per_prompt=MEDIA_PER_PROMPT,
        # A token of a prompt that comes out of the cache would use no experts.
        enable_prefix_caching=False,
        disable_log_stats=True,
        max_model_len=-1,  # as long as the KV cache has room for
    )
    if folder.resolve() == bundled_checkpoint().resolve():
        parser.set_defaults(dtype="float32")
    if current_platform.is_cpu():
        parser.set_defaults(enforce_eager=True, kv_cache_memory_bytes=CPU_KV_CACHE_BYTES)
    args = parser.parse_args(list(options))
    if args.trust_remote_code:
        raise ValueError(
            "--trust-remote-code is not taken. To run the Python files of the checkpoint, give "
            "--run-checkpoint-code."
        )
    args.model, args.trust_remote_code = str(folder), run_checkpoint_code
    return EngineArgs.from_cli_args(args)


def ask(
    arguments: EngineArgs,
    routing: Mapping[str, Any] | None,
    questions: Sequence[Question],
    max_tokens: int,
    terminal: TextIO,
) -> Run:
    """The greedy answers under `routing` (None: the checkpoint's own), and what was counted meanwhile."""
    with _engine(arguments, routing) as llm, tqdm(total=len(questions), file=terminal) as progress:
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens)
        outputs: list[RequestOutput] = []
        start = time.perf_counter()
        for at in range(0, len(questions), BATCH):
            chats = [_chat(question) for question in questions[at : at + BATCH]]
            outputs += llm.chat(chats, sampling, use_tqdm=False)
            progress.update(len(chats))
        seconds = time.perf_counter() - start
        in_force: Mapping[str, Any] = llm.collective_rpc("prismoe_routing")[0]
        load: Mapping[str, Any] = llm.collective_rpc("prismoe_expert_load")[0]
    tokens = sum(len(one.prompt_token_ids or ()) + len(one.outputs[0].token_ids) for one in outputs)
    layers, modalities = in_force["layers"], load["modalities"]
    return Run(
        routing,
        list(dict.fromkeys(layer["policy"]["policy"] for layer in layers)),
        [] if layers else in_force["not_supported"] or ["The model has no MoE layers."],
        [one.outputs[0].text.strip() for one in outputs],
        _by_modality(modalities, [[sum(uses) for uses in rows] for rows in load["expert_tokens"]]),
        _by_modality(modalities, load["tokens"]),
        tokens / seconds,
    )


@contextmanager
def _engine(arguments: EngineArgs, routing: Mapping[str, Any] | None) -> Iterator[LLM]:
    config = {**arguments.additional_config, **additional_config(routing)}
    llm = LLM.from_engine_args(replace(arguments, additional_config=config))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def _chat(question: Question) -> Any:
    content = [
        {"type": "image_pil", "image_pil": _picture(question.image)},
        {"type": "text", "text": question.question},
    ]
    return [{"role": "user", "content": content}]


def _picture(file: Path) -> Image.Image:
    """The picture upright and on white, as the server shows it to a model."""
    try:
        with Image.open(file) as image:
            return convert_image_mode(ImageOps.exif_transpose(image), "RGB")
    except OSError as error:
        raise ValueError(f"{file} can't be read as a picture: {error}.") from error


def _by_modality(modalities: Sequence[str], counts: Sequence[Sequence[int]]) -> dict[str, int]:
    """The sums over layers of counts by layer and modality, of modalities that have any."""
    sums = {name: sum(row[place] for row in counts) for place, name in enumerate(modalities)}
    return {name: count for name, count in sums.items() if count}
