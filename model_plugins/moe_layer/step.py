"""The running step's state: its tokens' modalities and segments, and each MoE layer's decisions.

All of it is in buffers at fixed addresses, so that compiled graphs and CUDA graphs can read and write it.
`[:n]` describes the n tokens of the step, and the rest is padding. vLLM runs dummy steps without embedding
tokens: the buffers then hold only padding.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from vllm.utils.torch_utils import async_tensor_h2d

from prismoe.kernels.expert_load import (
    NOT_COUNTED,
    LayerShape,
    RoutedTokens,
    ScoredTokens,
)
from prismoe.kernels.layer_rows import LayerRows, write_rows
from prismoe.kernels.modalities import VISION
from prismoe.kernels.routing import PADDING, TEXT
from prismoe.model_plugins.moe_layer.kernel_check import kernel_works

NOT_WRITTEN = -2
"""Marks a slot that no router has written; vLLM gives padding expert -1 on some devices."""
MOST_SCORED = 2**19
"""The most scored tokens of a step, times layers and experts. In a step with more tokens, evenly spaced ones
are scored: statistics of all tokens, with 48 layers of 128 experts, would take longer than routing."""


class StepTokens(NamedTuple):
    """The tokens of the running step, as in `RouterInputs`."""

    segment_T: Tensor
    asked_T2: Tensor
    is_text: bool
    request_T: Tensor


class Media(NamedTuple):
    """The embeddings of one image, video or sound in a step, or of a part of it."""

    modality: str
    tokens: int
    asked_T2: Tensor | None = None
    """The experts that its request asks for its tail and its head tokens, `[tokens, 2]`; 0 asks for
    nothing."""


class MarkedTokens(nn.Module):
    """What the tokens of the running step are, as recorded when they were embedded.

    `most_sampled` is the most tokens of a step whose router confidence is counted.
    """

    segments: Tensor
    asked: Tensor
    modalities: Tensor
    requests: Tensor
    sampled: Tensor

    def __init__(self, modalities: Sequence[str], max_tokens: int, most_sampled: int) -> None:
        super().__init__()
        self.names = (*modalities,)
        self.num_tokens = 0
        self.is_spaced = False
        self._is_text = self._is_asked = False
        self._most_sampled = most_sampled
        for name, buffer in {
            "segments": torch.full((max_tokens,), PADDING),
            "asked": torch.zeros(max_tokens, 2, dtype=torch.int32),
            "modalities": torch.full((max_tokens,), NOT_COUNTED),
            "requests": torch.zeros(max_tokens, dtype=torch.int64),
            "sampled": torch.arange(most_sampled),
        }.items():
            self.register_buffer(name, buffer, persistent=False)

    @property
    def num_sampled(self) -> int:
        """The number of the step's tokens whose router confidence is counted."""
        return min(self.num_tokens, self._most_sampled)

    def mark(
        self,
        is_media_T: Tensor | None,
        media: Sequence[Media],
        num_tokens: int,
        places: np.ndarray | None = None,
    ) -> None:
        """Describe a step of `num_tokens` tokens.

        Those of `is_media_T`, a tensor on the CPU, are the tokens of `media`, in order. If the order differs,
        `places` holds the position of each token of `media`.
        """
        assert num_tokens <= len(self.segments), "the step holds more tokens than its buffers"
        self.clear()
        self.num_tokens, self._is_text = num_tokens, is_media_T is None or not media
        if is_media_T is None or not media:
            self.segments[:num_tokens].fill_(TEXT)
            self.modalities[:num_tokens].fill_(0)
        else:
            self._mark_media(np.flatnonzero(is_media_T.numpy()) if places is None else places, media)
        self._sample()

    def mark_requests(self, counts: Sequence[int]) -> None:
        """Record how many tokens each request of the step has, for policies that need each token's request.

        Call it before `mark`; it holds until the next call.
        """
        request_T = np.repeat(np.arange(len(counts)), counts)
        async_tensor_h2d(request_T, out=self.requests[: len(request_T)])

    def _mark_media(self, positions: np.ndarray, media: Sequence[Media]) -> None:
        device, num_tokens = self.segments.device, self.num_tokens
        sizes = [one.tokens for one in media]
        segments = np.full(num_tokens, TEXT)
        is_seen = [one.modality in VISION for one in media]
        segments[positions] = np.repeat(np.where(is_seen, np.arange(len(media)), TEXT), sizes)
        modalities = np.zeros(num_tokens, dtype=np.int64)
        modalities[positions] = np.repeat([self.names.index(one.modality) for one in media], sizes)
        async_tensor_h2d(segments, out=self.segments[:num_tokens])
        async_tensor_h2d(modalities, out=self.modalities[:num_tokens])
        if all(one.asked_T2 is not None for one in media):
            asked_X2 = torch.cat([one.asked_T2 for one in media if one.asked_T2 is not None])
            self.asked[async_tensor_h2d(positions, device=device)] = asked_X2.to(self.asked.dtype)
            self._is_asked = True

    def _sample(self) -> None:
        """Choose the tokens whose router confidence is counted."""
        if self.num_tokens > self._most_sampled:
            rows = np.arange(self._most_sampled) * self.num_tokens // self._most_sampled
            async_tensor_h2d(rows, out=self.sampled)
            self.is_spaced = True
        elif self.is_spaced:
            torch.arange(self._most_sampled, out=self.sampled)
            self.is_spaced = False

    def seen(self, num_tokens: int) -> StepTokens:
        """The running step's tokens as policies see them, padded to `num_tokens`."""
        is_readable = not torch.compiler.is_compiling() and self.segments.device.type == "cpu"
        is_text = is_readable and self._is_text and num_tokens == self.num_tokens
        return StepTokens(
            self.segments[:num_tokens], self.asked[:num_tokens], is_text, self.requests[:num_tokens]
        )

    def clear(self) -> None:
        """Clear the step, so that a dummy step after it counts nothing."""
        n = self.num_tokens
        if n == 0:
            return
        self.segments[:n].fill_(PADDING)
        self.modalities[:n].fill_(NOT_COUNTED)
        if self._is_asked:
            self.asked[:n].fill_(0)
        self.num_tokens, self._is_text, self._is_asked = 0, False, False


class RoutingStep(nn.Module):
    """The decision of each MoE layer for the step: written by routers, read by counters and the inspector.

    It shares the tokens of the step `beside` it, if given, which has the same number of layers and experts.
    """

    experts: Tensor
    weights: Tensor
    counts: Tensor
    tails: Tensor
    logits: Tensor
    scores: Tensor

    def __init__(
        self,
        modalities: Sequence[str],
        layers: Sequence[LayerShape],
        max_tokens: int,
        beside: Self | None = None,
    ) -> None:
        super().__init__()
        self.layers = [*layers]
        self._rows: list[LayerRows] = []
        self._write_rows = write_rows
        slots = max((layer.slots for layer in layers), default=0)
        experts = max((layer.experts for layer in layers), default=0)
        most_sampled = min(max_tokens, max(1, MOST_SCORED // max(1, len(layers) * experts)))
        self.tokens: MarkedTokens = (
            MarkedTokens(modalities, max_tokens, most_sampled) if beside is None else beside.tokens
        )
        slots_L1 = torch.tensor([[layer.slots] for layer in layers], dtype=torch.int32).view(-1, 1)
        scored = len(layers), most_sampled, experts
        for name, buffer in {
            "experts": torch.zeros(len(layers), max_tokens, slots, dtype=torch.int32),
            "weights": torch.zeros(len(layers), max_tokens, slots, dtype=torch.float32),
            "counts": slots_L1.repeat(1, max_tokens),
            "tails": torch.zeros(len(layers), max_tokens, dtype=torch.bool),
            "logits": torch.zeros(*scored, dtype=torch.float32),
            "scores": torch.zeros(*scored, dtype=torch.float32),
        }.items():
            self.register_buffer(name, buffer, persistent=False)

    def write(self, layer: int, *routed: Any) -> None:
        """Write the decision of the layer at place `layer`. `routed` are the arguments of `write_rows`."""
        if torch.compiler.is_compiling():
            write_rows(self._rows_of(layer), *routed)
            return
        if not self._rows:
            self._rows = [self._rows_of(place) for place in range(len(self.layers))]
        self._write_rows(self._rows[layer], *routed)

    def forget_rows(self) -> None:
        """Make `experts_written` count only what routers write from now on."""
        self.experts.fill_(NOT_WRITTEN)

    def experts_written(self) -> tuple[Sequence[int], Sequence[int]]:
        """The experts that the step's tokens use, by layer, and how many of them a router has written."""
        _, experts_LTA, count_LT, _ = self.routed()
        slot_A = torch.arange(experts_LTA.shape[2], device=experts_LTA.device)
        is_written_LTA = (slot_A < count_LT[..., None]) & (experts_LTA != NOT_WRITTEN)
        return count_LT.sum(dim=1).tolist(), is_written_LTA.sum(dim=(1, 2)).tolist()

    def write_by_kernel(self) -> None:
        """Write by the fused kernel from now on, if it works on this GPU."""
        from prismoe.kernels.triton.layer_rows import check_write_rows, write_rows_fused

        check = partial(check_write_rows, self.tokens.segments.device)
        if kernel_works(check, "recording of a layer's routing", "plain PyTorch does it, which is slower"):
            self._write_rows = write_rows_fused

    def _rows_of(self, layer: int) -> LayerRows:
        shape = self.layers[layer]
        return LayerRows(
            self.tokens.sampled,
            self.experts[layer],
            self.weights[layer],
            None if shape.uses_all_slots else self.counts[layer],
            self.tails[layer] if shape.has_tails else None,
            self.logits[layer] if shape.scored else None,
            self.scores[layer] if shape.has_scores else None,
        )

    def routed(self) -> RoutedTokens:
        """The decisions for the step's tokens; views of the buffers."""
        n = self.tokens.num_tokens
        return RoutedTokens(
            self.tokens.modalities[:n], self.experts[:, :n], self.counts[:, :n], self.tails[:, :n]
        )

    def scored(self) -> ScoredTokens:
        """The logits and scores of the tokens whose router confidence is counted."""
        n = self.tokens.num_sampled
        rows = self.tokens.sampled[:n] if self.tokens.is_spaced else slice(n)
        return ScoredTokens(
            self.tokens.modalities[rows],
            self.experts[:, rows],
            self.counts[:, rows],
            self.logits[:, :n],
            self.scores[:, :n],
        )

    def constant(self) -> set[str]:
        """The fields of `routed` and `scored` that are the same for all tokens of a layer, in every step."""
        parts = {
            "count_LT": all(layer.uses_all_slots for layer in self.layers),
            "tail_LT": not any(layer.has_tails for layer in self.layers),
            "scores_LTE": not any(layer.has_scores for layer in self.layers),
        }
        return {name for name, is_constant in parts.items() if is_constant}
