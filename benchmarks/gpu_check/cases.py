"""Models, policies and requests whose expected answers and expert load are in golden.json."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from tests.model_plugins.in_tree import qwen3_vl_moe
from tests.model_plugins.in_tree.chats import TEXT, TWO_PICTURES
from tests.model_plugins.in_tree.tiny_model import BYTES
from tests.paths import DATA

NEW_TOKENS = 5


@dataclass(frozen=True)
class Case:
    """A model, the settings of its engine, and the requests to it."""

    checkpoint: Callable[[Path], Path]
    """Returns the checkpoint's folder. A generated checkpoint is written into the folder that is passed."""
    requests: Callable[[Path], Sequence[Any]]
    """Returns the prompts for `LLM.generate`, given the checkpoint."""
    routing: Mapping[str, Any] | None = None
    step: int = 48
    """The most tokens of a step: fewer than all requests together have, so that some prompts are split."""
    tasks: int = 0
    """How many tasks the requests take turns with; policy `task` reads them."""
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """The checkpoint's folder, which is deleted after the block if it was generated."""
        with TemporaryDirectory() as folder:
            yield self.checkpoint(Path(folder))


def weights_digest(checkpoint: Path) -> str:
    """A digest of all tensors of a checkpoint; it does not depend on their order in the file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(checkpoint / "model.safetensors").items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tiny_qwen(folder: Path) -> Path:
    qwen3_vl_moe.MODEL.save(folder / "qwen3-vl-moe")
    return folder / "qwen3-vl-moe"


def _phi_requests(_: Path) -> list[Any]:
    photo = Image.open(DATA / "image.png").convert("RGB")
    return [
        {"prompt": "USER: <image>\nWhat is this? ASSISTANT:", "multi_modal_data": {"image": photo}},
        {"prompt": "USER: A long question without an image, " + "word " * 20 + "ASSISTANT:"},
        {
            "prompt": "USER: " + "so " * 12 + "<image>\nand <image>\nare alike? ASSISTANT:",
            "multi_modal_data": {"image": [_noise(1), _noise(2)]},
        },
        {"prompt": "Hi"},
    ]


def _noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 56, 3), dtype=np.uint8))


def _prismoji_requests(checkpoint: Path) -> list[Any]:
    pictures = sorted((checkpoint / "pictures").glob("*.png"))[:3]
    question = "USER: <image>\nWhat is this? ASSISTANT:"
    return [
        {"prompt": question, "multi_modal_data": {"image": Image.open(file).convert("RGB")}}
        for file in pictures
    ] + [{"prompt": "USER: What is a dog? ASSISTANT:"}]


def _qwen_case(routing: Mapping[str, Any]) -> Case:
    return Case(
        _tiny_qwen,
        lambda checkpoint: [chat.for_vllm(checkpoint) for chat in (TEXT, TWO_PICTURES)],
        routing,
        sampling={"allowed_token_ids": list(range(BYTES))},
    )


CASES = {
    "phi": Case(
        lambda _: DATA / "moe-llava-phi-tiny",
        _phi_requests,
        {
            "policy": "ltdr",
            "layers": {"2": {"policy": "task", "top_k": 1, "tasks": 2, "experts": [3, 1]}},
        },
        tasks=2,
    ),
    "prismoji": Case(lambda _: bundled_checkpoint(), _prismoji_requests, step=96),
    "qwen3-vl-moe native": _qwen_case({"policy": "native"}),
    "qwen3-vl-moe dual_threshold": _qwen_case(
        {"policy": "dual_threshold", "vision_threshold": 0.45, "text_threshold": 0.1}
    ),
}
"""`phi` has two policies, split prompts and requests with two images; `prismoji` keeps its own routing."""
