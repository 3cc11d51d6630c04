"""What transformers makes of chats: greedy tokens, and which experts each modality's tokens used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.model_plugins.in_tree import kimi_k25
from tests.model_plugins.in_tree.chats import Chat
from tests.model_plugins.in_tree.tiny_model import BYTES

Rule = Callable[[int, Any, np.ndarray, bool], list[tuple[int, float]]]
"""Of a MoE layer, its router, a token's logits and whether it is vision: its experts and their weights."""
UNUSED = -1
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
    """Which experts each computed token used, by MoE layer; UNUSED where it used fewer than others."""
    num_experts: int
    first_logits: np.ndarray
    """Of the answer's first token, for each byte."""

    @property
    def counts(self) -> np.ndarray:
        """`[layer, modality, expert]`: how many computed tokens of that modality used the expert."""
        layers = len(self.experts_LTK)
        counts = np.zeros((layers, len(MODALITIES), self.num_experts), dtype=np.int64)
        for layer, experts_TK in enumerate(self.experts_LTK):
            token_P, slot_P = np.nonzero(experts_TK != UNUSED)
            np.add.at(counts[layer], (self.modality_T[token_P], experts_TK[token_P, slot_P]), 1)
        return counts

    @property
    def tokens_without_experts(self) -> np.ndarray:
        """`[layer, modality]`: how many computed tokens of that modality used no expert."""
        is_without_LT = (self.experts_LTK == UNUSED).all(axis=2)
        is_of_TM = self.modality_T[:, None] == np.arange(len(MODALITIES))
        return is_without_LT.astype(int) @ is_of_TM


def answers(
    checkpoint: Path,
    chats: Sequence[Chat],
    max_tokens: int = 6,
    dtype: str | torch.dtype = "auto",
    rule: Rule | None = None,
) -> list[Answer]:
    """Each chat by itself, in the checkpoint's dtype unless told, and with its own routing unless told."""
    model, processor = _loaded(checkpoint, dtype)
    return [answer(model, inputs(processor, chat, checkpoint), max_tokens, rule) for chat in chats]


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
    if model.config.model_type == "kimi_k25":
        kimi_k25.mend(model)
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
    prepared: dict[str, Tensor] = processor(
        text=[chat.prompt(checkpoint)], return_mm_token_type_ids=True, return_tensors="pt", **media
    )
    return {name: value for name, value in prepared.items() if isinstance(value, Tensor)}


class _Watch:
    """Keeps what a router chooses, and has it choose by a rule where there is one."""

    def __init__(self, layer: int, is_vision: np.ndarray, rule: Rule | None) -> None:
        self._layer, self._is_vision, self._rule = layer, is_vision, rule
        self.rows: list[np.ndarray] = []

    def __call__(self, router: Any, _: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
        first, weights_TK, experts_TK = output
        if self._rule is None:
            self.rows.extend(experts_TK.numpy())
            return None
        # Gemma's routers give probabilities, whose logarithms are as good as the logits.
        logits_TE = first.log() if type(router).__name__.startswith("Gemma") else first
        pairs_T: list[list[tuple[int, float]]] = []
        for logits_E in logits_TE.double().numpy():
            place = len(self.rows) + len(pairs_T)
            is_vision = place < len(self._is_vision) and bool(self._is_vision[place])
            pairs_T.append(self._rule(self._layer, router, logits_E, is_vision))
        slots = max(1, *map(len, pairs_T))
        chosen = [pairs + [(UNUSED, 0.0)] * (slots - len(pairs)) for pairs in pairs_T]
        self.rows.extend(np.array([expert for expert, _ in pairs]) for pairs in chosen)
        experts_TA = torch.tensor([[max(expert, 0) for expert, _ in pairs] for pairs in chosen])
        weights_TA = torch.tensor([[weight for _, weight in pairs] for pairs in chosen])
        return first, weights_TA.to(weights_TK.dtype), experts_TA.to(experts_TK.dtype)


def answer(model: Any, inputs: dict[str, Tensor], max_tokens: int, rule: Rule | None = None) -> Answer:
    """Generates with the routers watched."""
    routers = [module for name, module in model.named_modules() if _is_router(name)]
    # Tokens around a medium keep embeddings of their own: they are text, whatever the processor calls them.
    has_medium = torch.isin(inputs["input_ids"], torch.tensor(_media_ids(model.config)))
    prompt_modality = (inputs["mm_token_type_ids"] * has_medium)[0].numpy()
    watches = [_Watch(layer, prompt_modality > 0, rule) for layer in range(len(routers))]
    hooks = [router.register_forward_hook(watch) for router, watch in zip(routers, watches, strict=True)]
    try:
        generated = _generated(model, inputs, max_tokens)
    finally:
        for hook in hooks:
            hook.remove()
    prompt_ids, token_ids = _token_ids(inputs, generated)
    modality = np.zeros(len(prompt_ids) + max_tokens - 1, dtype=np.int64)
    modality[: len(prompt_ids)] = prompt_modality
    most = max(len(row) for watch in watches for row in watch.rows)
    experts = np.stack(
        [
            [np.pad(row, (0, most - len(row)), constant_values=UNUSED) for row in watch.rows]
            for watch in watches
        ]
    )
    assert experts.shape[1] == len(modality), "The routers have not seen each computed token once."
    first_logits = generated.logits[0][0, :BYTES].float().numpy()
    return Answer(prompt_ids, token_ids, modality, experts, _num_experts(model), first_logits)


@torch.inference_mode()
def _generated(model: Any, inputs: dict[str, Tensor], max_tokens: int) -> Any:
    """Greedily; only bytes are allowed."""
    if "mm_token_type_ids" not in signature(model.forward).parameters:
        inputs = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
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


def _media_ids(config: Any) -> list[int]:
    ids = [getattr(config, name, None) for name in ("image_token_id", "video_token_id")]
    return [token for token in ids if token is not None]


def _is_router(name: str) -> bool:
    return name.startswith("model.language_model.") and name.endswith((".mlp.gate", ".router"))


def _num_experts(model: Any) -> int:
    text = model.config.get_text_config()
    found = getattr(text, "num_local_experts", None) or text.num_experts
    assert isinstance(found, int)
    return found
