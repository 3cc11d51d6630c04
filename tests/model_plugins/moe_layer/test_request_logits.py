"""Layers that decide once for each request know the data of a step's requests."""

from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams

from prismoe.model_plugins.moe_layer.request_logits import RequestLogits
from prismoe.model_plugins.moe_layer.step import MarkedTokens
from prismoe.model_plugins.routing.policies.task import Task
from prismoe.model_plugins.vllm_seams.engine.step_watch import StepRequests


def test_a_requests_data_follow_it() -> None:
    tokens = MarkedTokens(["text"], max_tokens=8, most_sampled=1)
    logits = RequestLogits({0: 4}, tokens.requests, max_requests=3)
    policy = Task(top_k=1, norm_topk_prob=False, experts=(0, 1, 2, 3))
    gate = logits.add_layer(0, policy, {})

    def step(names: dict[str, int], new: dict[str, int], known: set[str]) -> list[int]:
        requests = [
            SimpleNamespace(
                req_id=name,
                prompt_token_ids=[1, 2],
                mm_features=[],
                sampling_params=SamplingParams(extra_args={"task": task}),
            )
            for name, task in new.items()
        ]
        counts = [*names.values()]
        tokens.mark_requests(counts)
        logits.begin_step(StepRequests([*names], counts, counts, requests, known), torch.nn.Embedding(3, 5))
        return gate(torch.empty(sum(counts), 5)).argmax(dim=1).tolist()

    assert step({"a": 2}, {"a": 3}, {"a"}) == [3, 3]
    assert step({"b": 3, "a": 1}, {"b": 1}, {"a", "b"}) == [1, 1, 1, 3]
    assert step({"b": 1}, {}, {"a", "b"}) == [1]  # a waits, as after a preemption
    assert step({"c": 1}, {"c": 0}, {"a", "b", "c"}) == [0]  # both run, and another one arrives
    assert step({"a": 2, "b": 1}, {}, {"a", "b"}) == [3, 3, 1]
    assert step({"a": 1}, {"a": 2}, {"a"}) == [2]  # another request with that name
    with pytest.raises(KeyError):
        step({"b": 1}, {}, {"a"})
