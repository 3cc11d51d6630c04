"""Which image each token of the running step belongs to, in a buffer that CUDA graphs can read."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from vllm.utils.torch_utils import async_tensor_h2d

from prismoe.kernels.routing import PADDING, TEXT


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

    def mark(self, is_vision_T: Tensor | None, image_sizes: Sequence[int], num_tokens: int) -> None:
        """Describe a step of `num_tokens` tokens, whose vision tokens are those of the images, in order."""
        self.segments.fill_(PADDING)
        step = self.segments[:num_tokens]
        if is_vision_T is None or not image_sizes:
            step.fill_(TEXT)
            return
        image_of_vision_token = np.repeat(np.arange(len(image_sizes)), image_sizes)
        images = async_tensor_h2d(image_of_vision_token, device=step.device)
        is_vision_T = is_vision_T.to(step.device, non_blocking=True)
        nth_vision_token_T = (is_vision_T.cumsum(0) - 1).clamp(min=0)
        step.copy_(torch.where(is_vision_T, images[nth_vision_token_T], TEXT))

    def clear(self) -> None:
        """Forget the step, so that a dummy step after it counts nothing."""
        self.segments.fill_(PADDING)
