"""Random routing decisions with a different number of experts for each token."""

import torch
from torch import Tensor

SIZES = [1, 2, 3, 7, 16, 65]


def ragged_routing(tokens: int, experts: int, slots: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`weights_TA` and `experts_TA` (int32) as a router returns them.

    Some tokens name an expert twice, others use none.
    """
    generator = torch.Generator().manual_seed(seed * 1000 + tokens * 31 + experts + slots)
    count_T = torch.randint(slots + 1, (tokens,), generator=generator)
    experts_TA = torch.randint(experts, (tokens, slots), generator=generator, dtype=torch.int32)
    used_TA = torch.arange(slots) < count_T[:, None]
    weights_TA = torch.where(used_TA, torch.rand(tokens, slots, generator=generator) + 0.01, 0)
    return weights_TA, torch.where(used_TA, experts_TA, experts_TA[:, :1])
