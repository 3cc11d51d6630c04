"""The fused router against the plain one, by Triton's interpreter."""

import numpy as np
import pytest
import torch

from prismoe.kernels.expert_load import Confidence, LayerLoad, count_expert_load, empty_load
from prismoe.kernels.routing import router_probabilities, tail_tokens, top_experts_by_count
from prismoe.kernels.triton_router import ltdr_router
from tests.kernels.test_routing import SEGMENTS, random_logits


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("experts", [2, 3, 4, 7, 64])
@pytest.mark.parametrize(
    "segments",
    [*SEGMENTS.values(), [0] * 50 + [-1] * 20 + [1] * 100 + [2] * 3],
    ids=[*SEGMENTS.keys(), "images over several blocks"],
)
def test_it_decides_as_the_plain_router(segments: list[int], experts: int, renormalize: bool) -> None:
    logits_TE, segment_T = random_logits(len(segments), experts), torch.tensor(segments)
    top_k = min(2, experts)
    load_MC, expected_load_MC = empty_load(experts), empty_load(experts)
    tail_T = tail_tokens(router_probabilities(logits_TE), segment_T)
    count_T = torch.where(tail_T, experts, top_k)
    expected_TA, expected_weights_TA = top_experts_by_count(logits_TE, count_T, experts, renormalize)
    count_expert_load(expected_load_MC, expected_TA, count_T, tail_T, segment_T, Confidence(logits_TE))

    experts_TA, weights_TA = ltdr_router(logits_TE, segment_T, load_MC, 4, top_k, experts, renormalize)
    torch.testing.assert_close(experts_TA.long(), expected_TA)
    torch.testing.assert_close(weights_TA, expected_weights_TA)
    load, expected = (LayerLoad.read(each, experts) for each in (load_MC, expected_load_MC))
    for name, counts in expected._asdict().items():
        assert np.array(getattr(load, name)) == pytest.approx(np.array(counts), abs=1e-4), name


def test_ties_take_the_lower_expert_and_unused_slots_can_be_dropped() -> None:
    load_MC = empty_load(4)
    segment_T = torch.tensor([-1, 0, 0])
    experts_TA, _ = ltdr_router(torch.zeros(3, 4), segment_T, load_MC, 1, 2, 4, True, drop_unused=True)
    assert experts_TA.tolist() == [[0, 1, -1, -1]] * 3
