"""Counters against a count in plain Python."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismoe.kernels.expert_load import count_expert_load


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-2, 3), min_size=1, max_size=40), st.integers(1, 6), st.data(), st.integers(0, 2**31)
)
def test_counts_each_real_pair_once(
    segments: list[int], experts: int, data: st.DataObject, seed: int
) -> None:
    slots = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(seed)
    tokens = len(segments)
    experts_TA = torch.randint(experts, (tokens, slots), generator=generator)
    count_T = torch.randint(1, slots + 1, (tokens,), generator=generator)
    tail_T = (torch.rand(tokens, generator=generator) < 0.5) & (torch.tensor(segments) >= 0)
    load_MC = torch.ones(2, experts + 2, dtype=torch.int64)
    expected = load_MC.tolist()
    for token, segment in enumerate(segments):
        if segment == -2:
            continue
        row = expected[1 if segment >= 0 else 0]
        for slot in range(int(count_T[token])):
            row[int(experts_TA[token, slot])] += 1
        row[experts] += 1
        row[experts + 1] += int(tail_T[token])
    count_expert_load(load_MC, experts_TA, count_T, tail_T, torch.tensor(segments))
    assert load_MC.tolist() == expected
