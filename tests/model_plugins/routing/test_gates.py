"""Compares policies under vLLM's gates with a float64 reference, and gates with vLLM's routers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from prismoe.kernels.routing import top_experts
from prismoe.model_plugins.routing.gate import Gate
from prismoe.model_plugins.routing.policy import RouterInputs
from prismoe.model_plugins.routing.registry import POLICIES
from tests.kernels.test_routing import SEGMENTS
from tests.model_plugins.routing import gate_reference
from tests.model_plugins.routing.gate_reference import GateRule, GateStep
from tests.model_plugins.routing.policy_reference import Pairs
from tests.model_plugins.routing.routing_steps import random_parameter

K = 3
GATES: dict[str, dict[str, Any]] = {
    "softmax": {"renormalises": False},
    "softmax, renormalised": {},
    "sigmoid with a bias, scaled": {"scoring": "sigmoid", "bias": True, "scale": 2.5},
    "sigmoid, raw": {"scoring": "sigmoid", "renormalises": False},
    "sigmoid in groups": {"scoring": "sigmoid", "bias": True, "groups": (3, 2), "scale": 1.5},
    "softmax in groups": {"groups": (2, 1), "renormalises": False},
    "softplus with a bias": {"scoring": "sqrtsoftplus", "bias": True},
    "softmax with a scale of each expert's": {"expert_scale": True},
}
CASES: dict[str, dict[str, Any]] = {
    "topk": {"policy": "topk"},
    "skipping": {"policy": "dual_threshold", "vision_importance": 0.8, "vision_threshold": 0.3},
    "skipping nearly all": {"policy": "dual_threshold", "text_threshold": 0.2, "vision_threshold": 5},
    "skipping all": {
        "policy": "dual_threshold",
        "text_threshold": 0.5,
        "vision_threshold": 0.4,
        "keep_best": False,
    },
    "fewer for heads": {"policy": "ltdr", "threshold": 0.004, "head_experts": 1, "tail_experts": 3},
    "more for tails": {"policy": "ltdr", "threshold": 0.004, "head_experts": 2, "tail_experts": 5},
    "entropy": {"policy": "entropy", "max_experts": 4, "low": 0.6, "high": 0.95},
    "groups": {"policy": "modality_groups", "vision_experts": 1, "text_experts": 3},
    "equiroute": {"policy": "equiroute"},
    "equiroute with reserved slots": {"policy": "equiroute", "reserved_slots": 2},
    "steer": {
        "policy": "steer",
        "all": {"on": [4], "off": [1, 3]},
        "text": {"shift": {"0": 1.5}},
        "vision": {"on": [2], "shift": {"5": -2}},
    },
}


def make_gate(settings: dict[str, Any], num_experts: int) -> tuple[Gate, GateRule]:
    """The gate, and its reference."""
    generator = torch.Generator().manual_seed(num_experts)
    own: dict[str, Any] = {
        "scoring": "softmax",
        "renormalises": True,
        "groups": None,
        "scale": 1.0,
    } | settings
    bias_E = 0.3 * torch.randn(num_experts, generator=generator) if own.pop("bias", False) else None
    scale_E = torch.rand(num_experts, generator=generator) + 0.5 if own.pop("expert_scale", False) else None
    rule = GateRule(
        **own,
        bias=0.0 if bias_E is None else bias_E.double().numpy(),
        expert_scale=1.0 if scale_E is None else scale_E.double().numpy(),
    )
    return Gate(**own, bias_E=bias_E, expert_scale_E=scale_E), rule


def random_step(policy: Any, segments: list[int], num_experts: int, gate: Gate) -> RouterInputs:
    generator = torch.Generator().manual_seed(num_experts + len(segments))
    return RouterInputs(
        hidden_TD=torch.zeros(len(segments), 4),
        logits_TE=2 * torch.randn(len(segments), num_experts, generator=generator),
        segment_T=torch.tensor(segments),
        asked_T2=torch.zeros(len(segments), 2, dtype=torch.int32),
        parameters={
            name: random_parameter(name, shape, generator)
            for name, shape in policy.parameters(4, num_experts).items()
        },
        num_experts=num_experts,
        is_text=max(segments) < 0,
        gate=gate,
    )


def used(policy: Any, gate: Gate, step: RouterInputs) -> list[Pairs]:
    experts_TA, weights_TA, *_ = routing = policy.route(step)
    weights_TA = gate.scaled(weights_TA, experts_TA, step.logits_TE, policy.norm_topk_prob)
    rows = zip(experts_TA.tolist(), weights_TA.tolist(), routing.count_T.tolist(), strict=True)
    return [list(zip(experts, weights, strict=True))[:count] for experts, weights, count in rows]


def make_policy(settings: dict[str, Any], renormalises: bool) -> Any:
    kind = POLICIES[settings["policy"]]
    defaults = {"top_k": K, "norm_topk_prob": renormalises}
    return kind.model_validate(
        {name: value for name, value in defaults.items() if name in kind.model_fields} | settings
    )


def is_served(settings: dict[str, Any], gate: dict[str, Any], num_experts: int) -> bool:
    """Whether the gate has as many experts for a token as the policy needs.

    Otherwise the start is refused.
    """
    seen, _ = make_gate(gate, num_experts)
    policy = make_policy(settings, seen.renormalises)
    most = seen.most_experts(num_experts)
    return policy.policy == "modality_groups" or policy.slots(num_experts) <= most


SERVED = [
    pytest.param(settings, gate, num_experts, id=f"{case}-{name}-{num_experts}")
    for case, settings in CASES.items()
    for name, gate in GATES.items()
    for num_experts in (6, 18)
    if is_served(settings, gate, num_experts)
]


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS.keys())
@pytest.mark.parametrize(("settings", "gate", "num_experts"), SERVED)
def test_a_policy_under_a_gate_matches_its_reference(
    settings: dict[str, Any], gate: dict[str, Any], segments: list[int], num_experts: int
) -> None:
    seen, rule = make_gate(gate, num_experts)
    policy = make_policy(settings, seen.renormalises)
    step = random_step(policy, segments, num_experts, seen)
    expected = gate_reference.routed(
        policy,
        rule,
        GateStep(
            step.logits_TE.numpy(),
            step.is_vision_T.tolist(),
            {name: value.double().numpy() for name, value in step.parameters.items()},
        ),
    )
    for mine, theirs in zip(used(policy, seen, step), expected, strict=True):
        assert sorted(expert for expert, _ in mine) == sorted(expert for expert, _ in theirs)
        np.testing.assert_allclose(
            [weight for _, weight in sorted(mine)], [weight for _, weight in sorted(theirs)], rtol=5e-5
        )


def test_the_gates_of_the_reference_all_differ() -> None:
    """Each setting of a gate changes some token's experts. Otherwise the test above would show nothing."""
    logits = 2 * np.random.default_rng(0).standard_normal((50, 6))
    policy = make_policy({"policy": "topk"}, renormalises=True)
    step = GateStep(logits, [False] * 50, {})
    reported = [gate_reference.routed(policy, make_gate(gate, 6)[1], step) for gate in GATES.values()]
    assert all(mine != theirs for at, mine in enumerate(reported) for theirs in reported[:at])


@pytest.mark.parametrize(
    ("gate", "options"),
    [
        ("softmax", {"renormalize": False}),
        ("softmax, renormalised", {}),
        ("sigmoid in groups", {"use_grouped_topk": True, "num_expert_group": 3, "topk_group": 2}),
        (
            "softmax in groups",
            {"use_grouped_topk": True, "num_expert_group": 2, "topk_group": 1, "renormalize": False},
        ),
    ],
)
def test_a_gate_equals_vllms(gate: str, options: dict[str, Any]) -> None:
    seen, _ = make_gate(GATES[gate], 18)
    router = CPURouter(
        K,
        18,
        scoring_func=seen.scoring or "",
        e_score_correction_bias=seen.bias_E,
        routed_scaling_factor=seen.scale,
        **options,
    )
    logits_TE = 2 * torch.randn(40, 18, generator=torch.Generator().manual_seed(1))
    theirs_TK, chosen_TK = router._compute_routing(torch.zeros(40, 4), logits_TE, None)
    confidence = seen.confidence(logits_TE)
    experts_TK, weights_TK = top_experts(confidence.logits_TE, K, seen.renormalises, confidence.scores_TE)
    ours_TK = seen.scaled(weights_TK, experts_TK, logits_TE, seen.renormalises)
    torch.testing.assert_close(
        _dense(experts_TK, ours_TK, 18), _dense(chosen_TK, theirs_TK, 18), rtol=1e-5, atol=1e-6
    )


def _dense(experts_TA: Tensor, weights_TA: Tensor, num_experts: int) -> Tensor:
    return torch.zeros(len(experts_TA), num_experts).scatter(1, experts_TA.long(), weights_TA)
