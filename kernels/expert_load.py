"""Counting expert load by modality, on the device and without a sync."""

import torch
from torch import Tensor

from prismoe.kernels.routing import PADDING

MODALITIES = ("text", "vision")
EXTRA_COLUMNS = 2  # behind the experts: tokens, tail tokens


def count_expert_load(
    load_MC: Tensor, experts_TA: Tensor, count_T: Tensor, tail_T: Tensor, segment_T: Tensor
) -> None:
    """Add one layer's step to `load_MC`, int64 `[modalities, E + 2]`, in place.

    A row is a modality. Its first E columns count the (token, expert) pairs that were used, the next one the
    tokens, the last one the tail tokens. Padding counts nothing. Integer sums are the same in any order.
    """
    columns = load_MC.shape[1]
    is_real_T = segment_T != PADDING
    row_T = (segment_T >= 0) * columns
    used_TA = torch.arange(experts_TA.shape[1], device=experts_TA.device) < count_T[:, None]
    cells = torch.cat([(row_T[:, None] + experts_TA).flatten(), row_T + (columns - 2), row_T + (columns - 1)])
    amounts = torch.cat([(used_TA & is_real_T[:, None]).flatten(), is_real_T, is_real_T & tail_T])
    load_MC.view(-1).index_add_(0, cells, amounts.to(load_MC.dtype))
