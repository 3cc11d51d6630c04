"""Transformers' results for chats: greedy tokens, and the experts that each modality's tokens used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.model_plugins.in_tree import kimi_k25
from tests.model_plugins.in_tree.chats import Chat, Video
from tests.model_plugins.in_tree.tiny_model import BYTES

Rule = Callable[[int, Any, np.ndarray, bool], list[tuple[int, float]]]
"""A rule: from a MoE layer, its router, a token's logits and whether it is vision to experts and weights."""
UNUSED = -1
MODALITIES = ("text", "image", "video")
"""The modalities in the order of transformers' `mm_token_type_ids`."""


@dataclass(frozen=True)
class Answer:
    """The result of one chat. Computed tokens are the prompt's and the answer's without the last."""

    prompt_ids: list[int]
    token_ids: list[int]
    modality_T: np.ndarray
    """The modality of each computed token, as an index into MODALITIES."""
    experts_LTK: np.ndarray
    """The experts of each computed token by MoE layer. UNUSED fills up tokens that used fewer than others."""
    num_experts: int
    first_logits: np.ndarray
    """The log-probability of each byte as the answer's first token."""

    @property
    def counts(self) -> np.ndarray:
        """The number of computed tokens that used each expert, `[layer, modality, expert]`."""
        layers = len(self.experts_LTK)
        counts = np.zeros((layers, len(MODALITIES), self.num_experts), dtype=np.int64)
        for layer, experts_TK in enumerate(self.experts_LTK):
            token_P, slot_P = np.nonzero(experts_TK != UNUSED)
            np.add.at(counts[layer], (self.modality_T[token_P], experts_TK[token_P, slot_P]), 1)
        return counts

    @property
    def tokens_without_experts(self) -> np.ndarray:
        """The number of computed tokens of each modality that used no expert, `[layer, modality]`."""
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
    """The answer to each chat alone. The checkpoint's dtype and routing are the defaults."""
    model, processor = _loaded(checkpoint, dtype)
    found = []
    for chat in chats:
        prepared = inputs(processor, chat, checkpoint)
        reported = prepared.get("mm_token_type_ids")
        modality_T = (
            _modality(model, processor, chat, checkpoint) if reported is None else reported[0].numpy()
        )
        found.append(answer(model, prepared, modality_T, max_tokens, rule))
    return found


def tokens_alone(
    checkpoint: Path, chats: Sequence[Chat], max_tokens: int = 6
) -> list[tuple[list[int], list[int]]]:
    """The prompt's and answer's tokens of each chat to a model without experts."""
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
    """The processor's inputs for a chat. All frames of its videos are used."""
    media: dict[str, Any] = {}
    if chat.pictures:
        media["images"] = chat.pictures
    if chat.videos:
        media["videos"] = [video.frames for video in chat.videos]
        media["video_metadata"] = [video.metadata() for video in chat.videos]
        media["do_sample_frames"] = False
    prepared: dict[str, Tensor] = processor(text=[chat.prompt(checkpoint)], return_tensors="pt", **media)
    return {name: value for name, value in prepared.items() if isinstance(value, Tensor)}


def _modality(model: Any, processor: Any, chat: Chat, checkpoint: Path) -> np.ndarray:
    """The modalities of a prompt's tokens if the processor doesn't report them, from each medium alone."""
    media_ids = [getattr(model.config, name, -1) for name in ("image_token_id", "video_token_id")]

    def media_T(chat: Chat) -> np.ndarray:
        return np.isin(inputs(processor, chat, checkpoint)["input_ids"][0].numpy(), media_ids)

    modality_T = media_T(chat).astype(np.int64)
    parts = [part for part in chat.parts if not isinstance(part, str)]
    numbers = [MODALITIES.index("video" if isinstance(part, Video) else "image") for part in parts]
    modality_T[modality_T > 0] = np.repeat(numbers, [int(media_T(Chat((part,))).sum()) for part in parts])
    return modality_T


class _Watch:
    """Records a router's choices, and makes it choose by a rule if there is one."""

    def __init__(self, layer: int, is_vision: np.ndarray, rule: Rule | None) -> None:
        self._layer, self._is_vision, self._rule = layer, is_vision, rule
        self.rows: list[np.ndarray] = []

    def __call__(self, router: Any, _: Any, output: tuple[Tensor, ...]) -> Any:
        if self._rule is None:
            self.rows.extend(_experts(output).numpy())
            return None
        first, weights_TK, experts_TK = output
        # Gemma's routers return probabilities, whose logarithms serve as logits.
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


def _experts(output: tuple[Tensor, ...]) -> Tensor:
    """The part of `experts_TK` with integers. Llama 4 returns each expert's weight, all but one of them 0."""
    whole = [part_TK for part_TK in output if not part_TK.is_floating_point()]
    return whole[0] if whole else output[0].argmax(dim=1, keepdim=True)


def answer(
    model: Any,
    inputs: dict[str, Tensor],
    prompt_modality: np.ndarray,
    max_tokens: int,
    rule: Rule | None = None,
) -> Answer:
    """Generate an answer and record the routers."""
    routers = [module for name, module in model.named_modules() if _is_router(name)]
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
    """Generate greedily. Only bytes are allowed."""
    vocabulary = model.config.get_text_config().vocab_size
    # Llama 4's processor returns bfloat16 pictures for models of any dtype.
    taken = {
        name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()
    }
    return model.generate(
        **taken,
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
    return "language_model." in name and name.endswith((".gate", ".router"))


def _num_experts(model: Any) -> int:
    text = model.config.get_text_config()
    names = ("num_local_experts", "num_experts", "moe_num_experts")
    return next(int(getattr(text, name)) for name in names if getattr(text, name, None))
