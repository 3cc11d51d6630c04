"""What transformers makes of chats: greedy tokens, and which experts each modality's tokens used."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.model_plugins.in_tree.chats import Chat
from tests.model_plugins.in_tree.tiny_model import BYTES

MODALITIES = ("text", "image", "video")
"""In the order of transformers' `mm_token_type_ids`."""


@dataclass(frozen=True)
class Answer:
    """Of one chat; computed are the prompt's tokens and the answer's, but for the last."""

    prompt_ids: list[int]
    token_ids: list[int]
    modality_T: np.ndarray
    """Of each computed token, a number in MODALITIES."""
    experts_LTK: np.ndarray
    """Which experts each computed token used, by MoE layer."""
    num_experts: int
    first_logits: np.ndarray
    """Of the answer's first token, for each byte."""

    @property
    def counts(self) -> np.ndarray:
        """`[layer, modality, expert]`: how many computed tokens of that modality used the expert."""
        layers = len(self.experts_LTK)
        counts = np.zeros((layers, len(MODALITIES), self.num_experts), dtype=np.int64)
        for layer, experts_TK in enumerate(self.experts_LTK):
            np.add.at(counts[layer], (self.modality_T[:, None], experts_TK), 1)
        return counts


def answers(
    checkpoint: Path, chats: Sequence[Chat], max_tokens: int = 6, dtype: str | torch.dtype = "auto"
) -> list[Answer]:
    """Each chat by itself, in the checkpoint's dtype unless told."""
    model, processor = _loaded(checkpoint, dtype)
    return [answer(model, inputs(processor, chat, checkpoint), max_tokens) for chat in chats]


def tokens_alone(
    checkpoint: Path, chats: Sequence[Chat], max_tokens: int = 6
) -> list[tuple[list[int], list[int]]]:
    """Of each chat to a model without experts, the prompt's and the answer's tokens."""
    model, processor = _loaded(checkpoint, "auto")
    prepared = [inputs(processor, chat, checkpoint) for chat in chats]
    return [_token_ids(one, _generated(model, one, max_tokens)) for one in prepared]


def _loaded(checkpoint: Path, dtype: str | torch.dtype) -> tuple[Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    return model, AutoProcessor.from_pretrained(checkpoint)


def inputs(processor: Any, chat: Chat, checkpoint: Path) -> dict[str, Tensor]:
    """What the processor makes of a chat, with its videos' frames as they are."""
    media: dict[str, Any] = {}
    if chat.pictures:
        media["images"] = chat.pictures
    if chat.videos:
        media["videos"] = [video.frames for video in chat.videos]
        media["video_metadata"] = [video.metadata() for video in chat.videos]
        media["do_sample_frames"] = False
    prepared: dict[str, Tensor] = processor(text=[chat.prompt(checkpoint)], return_tensors="pt", **media)
    return {name: value for name, value in prepared.items() if isinstance(value, Tensor)}


def answer(model: Any, inputs: dict[str, Tensor], max_tokens: int) -> Answer:
    """Generates with the routers watched."""
    routers = [module for name, module in model.named_modules() if _is_router(name)]
    chosen: list[list[Tensor]] = [[] for _ in routers]
    hooks = [
        router.register_forward_hook(lambda _, __, output, rows=rows: rows.append(output[-1]))
        for router, rows in zip(routers, chosen, strict=True)
    ]
    try:
        generated = _generated(model, inputs, max_tokens)
    finally:
        for hook in hooks:
            hook.remove()
    prompt_ids, token_ids = _token_ids(inputs, generated)
    modality = np.zeros(len(prompt_ids) + max_tokens - 1, dtype=np.int64)
    modality[: len(prompt_ids)] = inputs["mm_token_type_ids"][0].numpy()
    experts = np.stack([torch.cat(rows).numpy() for rows in chosen])
    assert experts.shape[1] == len(modality), "The routers have not seen each computed token once."
    first_logits = generated.logits[0][0, :BYTES].float().numpy()
    return Answer(prompt_ids, token_ids, modality, experts, _num_experts(model), first_logits)


@torch.inference_mode()
def _generated(model: Any, inputs: dict[str, Tensor], max_tokens: int) -> Any:
    """Greedily; only bytes are allowed."""
    vocabulary = model.config.get_text_config().vocab_size
    return model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=max_tokens,
        min_new_tokens=max_tokens,
        suppress_tokens=list(range(BYTES, vocabulary)),
        output_logits=True,
        return_dict_in_generate=True,
    )


def _token_ids(inputs: dict[str, Tensor], generated: Any) -> tuple[list[int], list[int]]:
    prompt_ids: list[int] = inputs["input_ids"][0].tolist()
    return prompt_ids, generated.sequences[0, len(prompt_ids) :].tolist()


def _is_router(name: str) -> bool:
    return name.startswith("model.language_model.") and name.endswith((".mlp.gate", ".router"))


def _num_experts(model: Any) -> int:
    text = model.config.get_text_config()
    found = getattr(text, "num_local_experts", None) or text.num_experts
    assert isinstance(found, int)
    return found
