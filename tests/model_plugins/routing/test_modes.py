"""`dual_threshold` compared with the code that MoDES released, for the same gate logits."""

import json

import pytest
import torch

from prismoe.model_plugins.routing.policies.dual_threshold import DualThreshold
from prismoe.model_plugins.routing.policy import RouterInputs
from tests.paths import DATA

RELEASED = json.loads((DATA / "modes-released-rule.json").read_text())
"""Random logits, and logits that were recorded from a trained model's gates.

`origin` names the program that wrote them. "visual" is called vision here.
"""
LAYERS = [(gates, layer) for gates, case in RELEASED.items() for layer in range(len(case["layers"]))]


def policy_and_step(gates: str, layer: int) -> tuple[DualThreshold, RouterInputs]:
    """A layer's settings, in the form of MoDES's files of importances and thresholds, and its tokens."""
    case = RELEASED[gates]
    importance, tau = case["layers"][layer]["importance"], case["tau"]
    policy = DualThreshold(
        top_k=case["top_k"],
        norm_topk_prob=True,
        text_importance=importance["text"],
        vision_importance=importance["visual"],
        text_threshold=tau["text"],
        vision_threshold=tau["visual"],
        keep_best=False,
    )
    logits_TE = torch.tensor(case["layers"][layer]["logits"])
    tokens, experts = logits_TE.shape
    asked_T2 = torch.zeros(tokens, 2, dtype=torch.int32)
    segment_T = torch.tensor(case["is_visual"]) - 1
    return policy, RouterInputs(torch.empty(tokens, 0), logits_TE, segment_T, asked_T2, {}, experts)


def released(gates: str, layer: int) -> tuple[torch.Tensor, list[int]]:
    """Each token's weights of all experts, and the number of weights that are not 0."""
    found = RELEASED[gates]["layers"][layer]
    used = found["used"]
    weights_TE = torch.zeros(len(used), len(found["logits"][0]))
    for token, pairs in enumerate(used):
        for expert, weight in pairs:
            weights_TE[token, expert] = weight
    return weights_TE, [len(pairs) for pairs in used]


@pytest.mark.parametrize(("gates", "layer"), LAYERS)
def test_every_token_has_the_released_weights(gates: str, layer: int) -> None:
    policy, step = policy_and_step(gates, layer)
    routing = policy.route(step)
    weights_TE, counts = released(gates, layer)
    actual_TE = torch.zeros_like(weights_TE).scatter_add_(1, routing.experts_TA, routing.weights_TA)
    torch.testing.assert_close(actual_TE, weights_TE, rtol=1e-5, atol=1e-7)
    assert routing.count_T.tolist() == counts


def test_the_released_rule_skips_all_experts_of_some_tokens() -> None:
    """Otherwise the test above would also pass with `keep_best`."""
    assert [released(*at)[1].count(0) for at in LAYERS] == [7, 0, 42, 53, 0]


@pytest.mark.parametrize(("threshold", "experts"), [(0.25, 2), (0.2501, 0)])
def test_an_expert_exactly_at_the_threshold_is_kept(threshold: float, experts: int) -> None:
    """The released code skips only those below it."""
    policy, step = policy_and_step(*LAYERS[0])
    changed = dict.fromkeys(("text_importance", "vision_importance"), 0.5)
    changed |= dict.fromkeys(("text_threshold", "vision_threshold"), threshold)
    even = step._replace(logits_TE=torch.zeros_like(step.logits_TE))
    routing = policy.model_copy(update={"top_k": 2, **changed}).route(even)
    assert (routing.count_T == experts).all()
