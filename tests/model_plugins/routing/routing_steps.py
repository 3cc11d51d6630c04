"""Policies and random steps for their tests."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prismoe.model_plugins.moe_layer.router import layer_shape
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.routing.policy import RouterInputs, RoutingPolicy
from prismoe.model_plugins.routing.registry import POLICIES
from prismoe.model_plugins.routing.request_policy import RequestPolicy, Requests
from tests.model_plugins.routing.policy_reference import Step

HIDDEN_SIZE = 24
TOP_2 = {"top_k": 2, "norm_topk_prob": True}

CASES: dict[str, dict[str, Any]] = {
    "topk": {"policy": "topk", **TOP_2},
    "topk of probabilities": {"policy": "topk", "top_k": 2, "norm_topk_prob": False},
    "topk of 1": {"policy": "topk", "top_k": 1, "norm_topk_prob": False},
    "ltdr": {"policy": "ltdr", **TOP_2},
    "ltdr of probabilities": {"policy": "ltdr", "top_k": 2, "norm_topk_prob": False},
    "ltdr with one expert for heads": {"policy": "ltdr", **TOP_2, "tail_experts": 3, "head_experts": 1},
    "ltdr with three for text": {"policy": "ltdr", **TOP_2, "text_experts": 3, "tail_experts": 2},
    "ltdr of heads": {"policy": "ltdr", **TOP_2, "selection": "head", "head_experts": 1},
    "ltdr over the request": {"policy": "ltdr", **TOP_2, "mean_over": "request", "tail_experts": 3},
    "ltdr of heads over the request": {
        "policy": "ltdr",
        **TOP_2,
        "mean_over": "request",
        "selection": "head",
        "head_experts": 1,
    },
    "ltdr by threshold": {"policy": "ltdr", **TOP_2, "threshold": 0.03},
    "ltdr of heads by threshold": {
        "policy": "ltdr",
        **TOP_2,
        "selection": "head",
        "threshold": 0.03,
        "tail_experts": 1,
        "request_experts": 4,
    },
    "gmm": {"policy": "gmm", "top_k": 2, "latent": 5, "components": 3},
    "gmm of 1": {"policy": "gmm", "top_k": 1, "latent": 32, "components": 16},
    "gmm with a mixture per expert": {"policy": "gmm", "top_k": 4, "latent": 2, "components": 1},
    "modality added": {"policy": "modality_conditioned", **TOP_2},
    "modality behind": {"policy": "modality_conditioned", **TOP_2, "form": "concat", "embedding_size": 6},
    "modality bias": {"policy": "modality_conditioned", "top_k": 2, "norm_topk_prob": False, "form": "bias"},
    "a gate for each modality": {"policy": "modality_conditioned", **TOP_2, "form": "gate"},
    "groups": {"policy": "modality_groups"},
    "uneven groups": {
        "policy": "modality_groups",
        "vision_group": 2,
        "vision_experts": 2,
        "shared_experts": 1,
    },
    "renormalised groups": {"policy": "modality_groups", "text_experts": 2, "norm_topk_prob": True},
    "equiroute": {"policy": "equiroute", **TOP_2},
    "equiroute of probabilities": {"policy": "equiroute", "top_k": 2, "norm_topk_prob": False},
    "equiroute with a reserved slot": {"policy": "equiroute", **TOP_2, "reserved_slots": 1},
    "equiroute with two reserved slots": {
        "policy": "equiroute",
        "top_k": 1,
        "norm_topk_prob": False,
        "reserved_slots": 2,
    },
    "top_any": {"policy": "top_any"},
    "cosine": {"policy": "cosine", **TOP_2, "latent": 6},
    "cosine of 1": {"policy": "cosine", "top_k": 1, "norm_topk_prob": False},
    "bias": {"policy": "bias_corrected", **TOP_2},
    "bias of sigmoids": {"policy": "bias_corrected", "top_k": 2, "norm_topk_prob": False, "score": "sigmoid"},
    "fine experts": {"policy": "fine_grained", "top_k": 2},
    "fine experts renormalised": {
        "policy": "fine_grained",
        "top_k": 1,
        "shared_experts": 2,
        "norm_topk_prob": True,
    },
    "two thresholds": {"policy": "dual_threshold", **TOP_2, "text_threshold": 0.05, "vision_threshold": 0.3},
    "two thresholds, all skipped": {
        "policy": "dual_threshold",
        "top_k": 2,
        "norm_topk_prob": False,
        "vision_importance": 0.1,
        "vision_threshold": 0.9,
    },
    "two thresholds that keep none": {
        "policy": "dual_threshold",
        **TOP_2,
        "text_threshold": 0.6,
        "vision_threshold": 0.7,
        "keep_best": False,
    },
    "entropy": {"policy": "entropy", "norm_topk_prob": True},
    "entropy within bounds": {
        "policy": "entropy",
        "norm_topk_prob": False,
        "min_experts": 2,
        "max_experts": 3,
        "low": 0.4,
        "high": 0.8,
    },
    "steer": {
        "policy": "steer",
        **TOP_2,
        "all": {"shift": {"1": -0.8}},
        "text": {"on": [2]},
        "vision": {"on": [3], "off": [0]},
    },
    "steer of probabilities": {
        "policy": "steer",
        "top_k": 2,
        "norm_topk_prob": False,
        "all": {"off": [2]},
        "vision": {"on": [1, 3], "shift": {"0": 2.5}},
    },
    "steer to nowhere": {"policy": "steer", "top_k": 1, "norm_topk_prob": False},
    "task": {"policy": "task", **TOP_2},
    "task of probabilities": {"policy": "task", "top_k": 2, "norm_topk_prob": False, "tasks": 2},
    "task by label": {
        "policy": "task",
        "top_k": 1,
        "norm_topk_prob": False,
        "tasks": 3,
        "experts": [2, 0, 3],
        "default_task": 1,
    },
    "cluster": {"policy": "cluster", **TOP_2},
    "cluster of few": {"policy": "cluster", "top_k": 1, "norm_topk_prob": False, "clusters": 5},
    "instruction": {"policy": "instruction", **TOP_2},
    "instruction of probabilities": {"policy": "instruction", "top_k": 2, "norm_topk_prob": False},
}


BY_MODALITY = {"modality_embedding", "modality_weight", "modality_bias", "pressure", "reservation"}
"""Parameters whose second row is for vision."""


def make(settings: Mapping[str, Any]) -> RoutingPolicy:
    return POLICIES[settings["policy"]].model_validate(settings)


def least_experts(policy: RoutingPolicy) -> int:
    """The fewest experts of a token: 1, or 0 if the policy can skip all."""
    return int(getattr(policy, "keep_best", True))


def random_step(policy: RoutingPolicy, segments: list[int], num_experts: int, seed: int = 0) -> RouterInputs:
    """A step whose requests set nothing. Each of them has up to two images.

    For a policy that decides once for each request, each token is its own request.
    """
    generator = torch.Generator().manual_seed(seed + 7 * num_experts + len(segments))
    tokens = len(segments)
    step = RouterInputs(
        hidden_TD=torch.randn(tokens, HIDDEN_SIZE, generator=generator),
        logits_TE=2 * torch.randn(tokens, policy.gate_rows(num_experts), generator=generator),
        segment_T=torch.tensor(segments),
        asked_T2=torch.zeros(tokens, 2, dtype=torch.int32),
        parameters={
            name: random_parameter(name, shape, generator)
            for name, shape in policy.parameters(HIDDEN_SIZE, num_experts).items()
        },
        num_experts=num_experts,
        is_text=max(segments) < 0,
        request_T=torch.tensor(segments).clamp(min=0) // 2,
    )
    return with_request_logits(policy, step)


def routing_step(policy: RoutingPolicy, num_experts: int, segments: list[int]) -> RoutingStep:
    """The routing step of one layer with `segments` of text and images."""
    step = RoutingStep(("text", "image"), [layer_shape(policy, num_experts)], len(segments))
    segment_T = torch.tensor(segments)
    step.tokens.segments.copy_(segment_T)
    step.tokens.modalities.copy_(segment_T.clamp(max=0) + 1)
    step.tokens.num_tokens = len(segments)
    return step


def with_request_logits(policy: RoutingPolicy, step: RouterInputs) -> RouterInputs:
    """The step with its requests' logits. The hidden states are used as the instructions."""
    if not isinstance(policy, RequestPolicy):
        return step
    requests = Requests(torch.tensor(labels(len(step.hidden_TD))), step.hidden_TD)
    return step._replace(logits_TE=policy.request_logits(requests, step.parameters, step.num_experts))


def labels(requests: int) -> list[int]:
    """No label, then 0, 1 and so on."""
    return [request % 7 - 1 for request in range(requests)]


SIZES = {
    "expert_bias": 0.2,
    "thresholds": 0.2,
    "log_mixing": 20.0,
    "centroids": 0.02,  # short, since otherwise the shortest would be nearest to everything
}


def random_parameter(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values of a size that has an effect. Pressures and temperatures are positive."""
    noise = torch.randn(shape, generator=generator)
    if name in ("pressure", "temperature"):
        return 0.3 + noise.abs()
    if name in ("encoder", "projection", "weight"):
        return noise * shape[-1] ** -0.5 * 2
    return noise * SIZES.get(name, 1.0)


def in_float64(step: RouterInputs) -> Step:
    assert step.request_T is not None
    return Step(
        hidden=step.hidden_TD.double().numpy(),
        logits=step.logits_TE.double().numpy(),
        segments=step.segment_T.tolist(),
        requests=step.request_T.tolist(),
        tasks=labels(len(step.hidden_TD)),
        instructions=step.hidden_TD.double().numpy(),
        asked=step.asked_T2.numpy(),
        parameters={name: value.double().numpy() for name, value in step.parameters.items()},
        num_experts=step.num_experts,
    )
