"""The fused counts against the plain ones, by Triton's interpreter."""

import numpy as np
import pytest
import torch

from prismoe.kernels.expert_load import Confidence, LayerLoad, count_expert_load, empty_load
from prismoe.kernels.triton.expert_load import count_expert_load_fused
from tests.kernels.test_routing import SEGMENTS, random_logits


@pytest.mark.parametrize(
    "said", ["nothing", "counts", "tails", "logits", "scores", "shared experts", "no segments"]
)
@pytest.mark.parametrize("experts", [2, *(pytest.param(many, marks=pytest.mark.slow) for many in (3, 7, 64))])
@pytest.mark.parametrize("segments", [*SEGMENTS.values(), [0] * 50 + [-1] * 20 + [1] * 80 + [-2] * 9])
def test_it_counts_as_the_plain_form(segments: list[int], experts: int, said: str) -> None:
    tokens, generator = len(segments), torch.Generator().manual_seed(experts)
    segment_T = None if said == "no segments" else torch.tensor(segments)
    scored = experts - 1 if said == "shared experts" else experts
    logits_TE = random_logits(tokens, scored)
    scores_TE = random_logits(tokens + 1, scored)[1:] / 20 if said == "scores" else None
    experts_TA = (logits_TE if scores_TE is None else scores_TE).argsort(descending=True)
    if scored < experts:
        experts_TA = torch.cat([torch.full((tokens, 1), experts - 1), experts_TA], dim=1)
    count_T = torch.randint(1, experts + 1, (tokens,), generator=generator)
    used_TA = torch.arange(experts) < count_T[:, None]
    experts_TA = torch.where(used_TA, experts_TA, experts_TA[:, :1])
    if said == "nothing":
        experts_TA = torch.randint(experts, (tokens, 2), generator=generator)  # some use an expert twice
    is_tail_T = torch.tensor(segments) * count_T % 3 > 1
    step = (
        experts_TA,
        None if said == "nothing" else count_T,
        is_tail_T if said == "tails" else None,
        segment_T,
        Confidence(logits_TE, scores_TE) if said not in ("nothing", "counts", "tails") else None,
    )
    fused_MC, plain_MC = empty_load(experts), empty_load(experts)
    for _ in range(2):
        count_expert_load_fused(fused_MC, *step)
        count_expert_load(plain_MC, *step)
    fused, plain = LayerLoad.read(fused_MC, experts), LayerLoad.read(plain_MC, experts)
    for name, counts in plain._asdict().items():
        rounding = 4e-6 * 2 * tokens if name.startswith("routing") else 0
        np.testing.assert_allclose(getattr(fused, name), counts, atol=rounding, err_msg=name)


def test_what_padding_holds_is_not_counted() -> None:
    logits_TE = torch.zeros(5, 4)
    logits_TE[2:] = torch.nan
    load_MC, real_MC = empty_load(4), empty_load(4)
    experts_TA, segment_T = torch.tensor([[0, 1]] * 5), torch.tensor([-1, 0, -2, -2, -2])
    count_expert_load_fused(load_MC, experts_TA, None, None, segment_T, Confidence(logits_TE))
    count_expert_load_fused(real_MC, experts_TA[:2], None, None, segment_T[:2], Confidence(logits_TE[:2]))
    assert load_MC.tolist() == real_MC.tolist()
    assert load_MC.any()
