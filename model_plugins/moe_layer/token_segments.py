"""Which image each token of the running step belongs to, in a buffer that CUDA graphs can read."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from vllm.utils.torch_utils import async_tensor_h2d

from prismoe.kernels.routing import PADDING, TEXT


class StepTokens(NamedTuple):
    """The tokens of the running step, as a `RouterInputs` describes them."""

    segment_T: Tensor
    asked_T2: Tensor
    is_text: bool


class TokenSegments(nn.Module):
    """`segments[:n]` describes the n tokens of the step: an image's index, TEXT or PADDING.

    vLLM runs dummy steps without embedding tokens; the buffer then says PADDING throughout, so such steps
    are never counted. `asked[:n]` are the numbers of experts that a token's request asks for vision tail and
    head tokens, 0 where it asks nothing.
    """

    segments: Tensor
    asked: Tensor

    def __init__(self, max_tokens: int) -> None:
        super().__init__()
        self.register_buffer("segments", torch.full((max_tokens,), PADDING), persistent=False)
        self.register_buffer("asked", torch.zeros(max_tokens, 2, dtype=torch.int32), persistent=False)
        self._is_on_cpu = self.segments.device.type == "cpu"
        self._nothing = self._copy = StepTokens(self.segments[:0], self.asked[:0], is_text=False)

    def mark(self, is_vision_T: Tensor | None, images: Sequence[Tensor], num_tokens: int) -> None:
        """Describe a step of `num_tokens` tokens.

        Its vision tokens are those of `images`, in order: for each what its tokens ask for, `[tokens, 2]`.
        """
        assert num_tokens <= len(self.segments), "the step holds more tokens than the segment buffer"
        self.clear()
        segment_T, asked_T2 = self.segments[:num_tokens], self.asked[:num_tokens]
        if is_vision_T is None or not images:
            segment_T.fill_(TEXT)
            asked_T2.zero_()
            self._keep_copy(num_tokens, is_text=True)
            return
        image_of_token = np.repeat(np.arange(len(images)), [len(image) for image in images])
        image_of_vision_token = async_tensor_h2d(image_of_token, device=segment_T.device)
        is_vision_T = is_vision_T.to(segment_T.device, non_blocking=True)
        nth_vision_token_T = (is_vision_T.cumsum(0) - 1).clamp(min=0)
        segment_T.copy_(torch.where(is_vision_T, image_of_vision_token[nth_vision_token_T], TEXT))
        asked_T2.copy_(torch.where(is_vision_T[:, None], torch.cat([*images])[nth_vision_token_T], 0))
        self._keep_copy(num_tokens, is_text=False)

    def step(self, num_tokens: int) -> StepTokens:
        """The running step's tokens: to a graph the buffers; to an eager engine on CPU a copy of segments."""
        if torch.compiler.is_compiling() or not self._is_on_cpu:
            return StepTokens(self.segments[:num_tokens], self.asked[:num_tokens], is_text=False)
        if len(self._copy.segment_T) != num_tokens:  # padded, or a dummy step
            self._keep_copy(num_tokens, is_text=False)
        return self._copy

    def clear(self) -> None:
        """Forget the step, so that a dummy step after it counts nothing."""
        self.segments.fill_(PADDING)
        self._copy = self._nothing

    def _keep_copy(self, num_tokens: int, is_text: bool) -> None:
        if self._is_on_cpu:
            self._copy = StepTokens(self.segments[:num_tokens].clone(), self.asked[:num_tokens], is_text)
