"""Tests the policy as `--routing '{"policy": "frugal_vision"}'` loads it: `pip install .`, then `pytest`."""

import torch

from prismoe.model_plugins.routing.policy import RouterInputs
from prismoe.model_plugins.routing.registry import choose_routing


def test_vision_tokens_get_one_expert_and_text_tokens_two() -> None:
    """The policy is looked up by the name of its entry point, as in a server."""
    routing = choose_routing({"policy": "frugal_vision"}, None, top_k=2, experts_by_layer={0: 4})
    logits_TE = torch.tensor([[0.0, 3.0, 1.0, 2.0], [4.0, 3.0, 2.0, 1.0]])
    step = RouterInputs(
        hidden_TD=torch.empty(2, 8),
        logits_TE=logits_TE,
        segment_T=torch.tensor([-1, 0]),  # a text token, then one of the first image
        asked_T2=torch.zeros(2, 2, dtype=torch.int32),
        parameters={},
        num_experts=4,
    )
    routed = routing.layers[0].policy.route(step)
    assert routed.count_T.tolist() == [2, 1]
    assert routed.experts_TA[0].tolist() == [1, 3] and routed.experts_TA[1, 0] == 0
    probs_TE = logits_TE.softmax(dim=-1)
    expected = torch.stack([probs_TE[0, [1, 3]] / probs_TE[0, [1, 3]].sum(), torch.tensor([1.0, 0.0])])
    torch.testing.assert_close(routed.weights_TA, expected)
