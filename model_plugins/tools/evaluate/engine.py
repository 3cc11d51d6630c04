"""Asks a model questions in a vLLM engine, under one routing."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from PIL import Image, ImageOps
from tqdm import tqdm
from vllm import EngineArgs, RequestOutput, SamplingParams
from vllm.multimodal.image import convert_image_mode

from prismoe.model_plugins.tools.chat_engine import chat_about, chat_engine
from prismoe.model_plugins.tools.evaluate.questions import Question
from prismoe.model_plugins.tools.evaluate.run import Run

BATCH = 256
"""The number of questions that vLLM gets at a time: it keeps the pictures of all of them."""


def ask(
    arguments: EngineArgs,
    routing: Mapping[str, Any] | None,
    questions: Sequence[Question],
    max_tokens: int,
    terminal: TextIO,
) -> Run:
    """The greedy answers under `routing` (None: the checkpoint's own), and the counts of that run."""
    with chat_engine(arguments, routing) as llm, tqdm(total=len(questions), file=terminal) as progress:
        sampling = SamplingParams(temperature=0, max_tokens=max_tokens)
        outputs: list[RequestOutput] = []
        start = time.perf_counter()
        for at in range(0, len(questions), BATCH):
            batch = questions[at : at + BATCH]
            chats = [chat_about(_picture(question.image), question.question) for question in batch]
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


def _picture(file: Path) -> Image.Image:
    """The picture upright and on white, as the server prepares it for a model."""
    try:
        with Image.open(file) as image:
            return convert_image_mode(ImageOps.exif_transpose(image), "RGB")
    except OSError as error:
        raise ValueError(f"{file} can't be read as a picture: {error}.") from error


def _by_modality(modalities: Sequence[str], counts: Sequence[Sequence[int]]) -> dict[str, int]:
    """The sums over layers of counts by layer and modality; without modalities that have none."""
    sums = {name: sum(row[place] for row in counts) for place, name in enumerate(modalities)}
    return {name: count for name, count in sums.items() if count}
