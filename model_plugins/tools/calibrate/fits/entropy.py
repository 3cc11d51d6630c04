"""Fits bounds of the gate's entropy for `entropy` (GeMoE, arXiv 2606.26287)."""

import math
from dataclasses import replace

from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData, RoutedLayer
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, RouterFit
from prismoe.model_plugins.tools.calibrate.fits.sketch import Ranked, merged

STEPS = 40  # of bisection
WIDTH = 1e-6  # of the interval, at least


def fit(data: CalibrationData, goal: Goal) -> RouterFit:
    """Fit `low` and `high` for each layer, so that a token gets `goal.mean_experts` on average.

    One of them stays at an end of the recorded entropies: for fewer experts `low` rises from the smallest
    entropy, for more `high` falls from the largest.
    """
    target = goal.mean_experts or data.top_k
    bounds = {layer: _bounds(seen, target, goal) for layer, seen in data.layers.items()}
    return RouterFit(
        {"policy": "entropy", **goal.settings},
        {layer: {"low": low, "high": high} for layer, (low, high) in bounds.items()},
    )


def _bounds(seen: RoutedLayer, target: float, goal: Goal) -> tuple[float, float]:
    least = goal.settings.get("min_experts", 1)
    most = goal.settings.get("max_experts") or seen.num_experts
    if not least < target < most:
        raise ValueError(
            f"A mean of {target:g} experts per token is not between min_experts ({least}) and max_experts "
            f"({most}): give another --mean-experts."
        )
    nats = merged([*seen.sketches.values()])
    entropy = replace(nats, values_N=nats.values_N / math.log(seen.num_experts))
    few, many = 1.0, -1.0
    for _ in range(STEPS):
        middle = (few + many) / 2
        low, high = _interval(entropy, middle)
        part_N = (entropy.values_N - low) / (high - low) * (most - least + 1)
        mean = entropy.mean((least + part_N.floor()).clamp(least, most))
        few, many = (middle, many) if mean <= target else (few, middle)
    return _interval(entropy, few)


def _interval(entropy: Ranked, position: float) -> tuple[float, float]:
    """The interval at a position from 1, above nearly all entropies, to -1, below nearly all."""
    low, high = entropy.quantile(max(position, 0)), entropy.quantile(min(1 + position, 1))
    return min(low, 1 - WIDTH), min(max(high, low + WIDTH), 1)
