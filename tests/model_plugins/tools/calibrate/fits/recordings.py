"""Made-up recordings of routers, and what a fitted policy does with them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prismoe.kernels.routing import TEXT
from prismoe.model_plugins.routing.policy import RouterInputs, Routing
from prismoe.model_plugins.routing.registry import choose_routing
from prismoe.model_plugins.tools.calibrate.fits.fit import RouterFit
from prismoe.model_plugins.tools.calibrate.router_recording import CalibrationData, RouterRecording

EXPERTS, TOP_K, HIDDEN = 4, 2, 12
IMAGES, IMAGE_TOKENS, TEXT_TOKENS = 10, 30, 11


def segments() -> Tensor:
    """Each image between two pieces of text."""
    parts = [
        torch.tensor([TEXT] * TEXT_TOKENS + [image] * IMAGE_TOKENS + [TEXT] * 2) for image in range(IMAGES)
    ]
    return torch.cat(parts)


def recording(seed: int) -> RouterRecording:
    draw = torch.Generator().manual_seed(seed)
    segment_T = segments()
    count = len(segment_T)
    return RouterRecording(
        torch.randn(count, EXPERTS, generator=draw),
        segment_T,
        torch.randn(count // 2, HIDDEN, generator=draw),
        torch.randperm(count, generator=draw)[: count // 2].sort().values,
    )


def no_engine(_: Sequence[Mapping[str, Any]]) -> Sequence[float]:
    raise AssertionError("This fit tries no routing.")


def calibration_data(
    divergence: Mapping[int, Mapping[str, float]] | None = None,
    divergences: Callable[[Sequence[Mapping[str, Any]]], Sequence[float]] = no_engine,
) -> CalibrationData:
    return CalibrationData(
        {layer: recording(layer) for layer in (0, 2)}, TOP_K, divergence or {}, divergences
    )


def routed(data: CalibrationData, fitted: RouterFit, on_sample: bool = False) -> dict[int, Routing]:
    """What the policy does that config.json will name, with its tensors, by layer."""
    checkpoint: dict[str, Any] = fitted.routing()
    in_force = choose_routing(None, checkpoint, data.top_k, dict.fromkeys(data.layers, EXPERTS))
    routings = {}
    for layer, router in data.layers.items():
        tokens = router.sample_N if on_sample else torch.arange(len(router.segment_T))
        hidden_TD = router.hidden_ND if on_sample else torch.empty(len(tokens), 0)
        asked_T2 = torch.zeros(len(tokens), 2, dtype=torch.int32)
        step = RouterInputs(
            hidden_TD,
            router.logits_TE[tokens],
            router.segment_T[tokens],
            asked_T2,
            fitted.tensors.get(layer, {}),
            EXPERTS,
        )
        routings[layer] = in_force.layers[layer].policy.route(step)
    return routings
