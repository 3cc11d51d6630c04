"""Bounds of the gate's entropy for `entropy` (GeMoE, arXiv 2606.26287)."""

import math

import torch
from torch import Tensor

from prismoe.kernels.routing import router_probabilities, routing_entropy
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, RouterFit
from prismoe.model_plugins.tools.calibrate.router_recording import CalibrationData, RouterRecording

STEPS = 40  # of bisection
WIDTH = 1e-6  # of the interval at least


def fit(data: CalibrationData, goal: Goal) -> RouterFit:
    """`low` and `high` for each layer, under which a token gets `goal.mean_experts` on average.

    One of them is at the end of the entropies that were seen: `low` rises from the least one for fewer
    experts, `high` falls from the largest for more.
    """
    wanted = goal.mean_experts or data.top_k
    bounds = {layer: _bounds(router, wanted, goal) for layer, router in data.layers.items()}
    return RouterFit(
        {"policy": "entropy", **goal.settings},
        {layer: {"low": low, "high": high} for layer, (low, high) in bounds.items()},
    )


def _bounds(router: RouterRecording, wanted: float, goal: Goal) -> tuple[float, float]:
    least = goal.settings.get("min_experts", 1)
    most = goal.settings.get("max_experts") or router.num_experts
    if not least < wanted < most:
        raise ValueError(
            f"A mean of {wanted:g} experts a token is not between min_experts ({least}) and max_experts "
            f"({most}): give another --mean-experts."
        )
    entropy_T = routing_entropy(router_probabilities(router.logits_TE)).double()
    entropy_T = (entropy_T / math.log(router.num_experts)).sort().values
    few, many = 1.0, -1.0
    for _ in range(STEPS):
        middle = (few + many) / 2
        low, high = _interval(entropy_T, middle)
        part_T = (entropy_T - low) / (high - low) * (most - least + 1)
        mean = (least + part_T.floor()).clamp(least, most).mean().item()
        few, many = (middle, many) if mean <= wanted else (few, middle)
    return _interval(entropy_T, few)


def _interval(entropy_T: Tensor, position: float) -> tuple[float, float]:
    """From 1, where it is above nearly all of the sorted entropies, down to -1, where it is below them."""
    ends = torch.tensor([max(position, 0), min(1 + position, 1)], dtype=torch.float64)
    low, high = torch.quantile(entropy_T, ends).tolist()
    return min(low, 1 - WIDTH), min(max(high, low + WIDTH), 1)
