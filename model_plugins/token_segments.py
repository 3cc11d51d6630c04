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

    def mark(self, is_vision_T: Tensor | None, images: Sequence[Tensor], num_tokens: int) -> None:
        """Describe a step of `num_tokens` tokens.

        Its vision tokens are those of `images`, in order: for each what its tokens ask for, `[tokens, 2]`.
        """
        assert num_tokens <= len(self.segments), "the step holds more tokens than the segment buffer"
        self.segments.fill_(PADDING)
        segment_T, asked_T2 = self.segments[:num_tokens], self.asked[:num_tokens]
        if is_vision_T is None or not images:
            segment_T.fill_(TEXT)
            asked_T2.zero_()
            return
        image_of_token = np.repeat(np.arange(len(images)), [len(image) for image in images])
        image_of_vision_token = async_tensor_h2d(image_of_token, device=segment_T.device)
        is_vision_T = is_vision_T.to(segment_T.device, non_blocking=True)
        nth_vision_token_T = (is_vision_T.cumsum(0) - 1).clamp(min=0)
        segment_T.copy_(torch.where(is_vision_T, image_of_vision_token[nth_vision_token_T], TEXT))
        asked_T2.copy_(torch.where(is_vision_T[:, None], torch.cat([*images])[nth_vision_token_T], 0))

    def clear(self) -> None:
        """Forget the step, so that a dummy step after it counts nothing."""
        self.segments.fill_(PADDING)
