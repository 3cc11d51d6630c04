"""Made-up recordings of routers, and the decisions of fitted policies for them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.routing import TEXT
from prismoe.model_plugins.routing.measures import Measure, measured
from prismoe.model_plugins.routing.policy import RouterInputs, Routing
from prismoe.model_plugins.routing.registry import choose_routing
from prismoe.model_plugins.tools.calibrate.fits.data import (
    CalibrationData,
    Divergences,
    RoutedLayer,
    TokenSample,
)
from prismoe.model_plugins.tools.calibrate.fits.fit import RouterFit

EXPERTS, TOP_K, HIDDEN = 4, 2, 12
IMAGES, IMAGE_TOKENS, TEXT_TOKENS = 10, 30, 11


def segments() -> Tensor:
    """The segments of tokens in which each image is between two pieces of text."""
    parts = [
        torch.tensor([TEXT] * TEXT_TOKENS + [image] * IMAGE_TOKENS + [TEXT] * 2) for image in range(IMAGES)
    ]
    return torch.cat(parts)


def sample(seed: int) -> TokenSample:
    draw = torch.Generator().manual_seed(seed)
    segment_T = segments()
    logits_TE = torch.randn(len(segment_T), EXPERTS, generator=draw)
    return TokenSample(logits_TE, segment_T, torch.randn(len(segment_T), HIDDEN, generator=draw))


def samples() -> dict[int, TokenSample]:
    return {layer: sample(layer) for layer in (0, 2)}


def calibration_data(
    layers: Mapping[int, TokenSample],
    measure: Measure | None = None,
    divergence: Mapping[int, Mapping[str, float]] | None = None,
    top_k: int = TOP_K,
    kept: int = 1,
    divergences: Divergences | None = None,
) -> CalibrationData:
    """The recording if these samples were all of the tokens, and each image were its own request."""
    seen = {layer: RoutedLayer(EXPERTS, of_layer) for layer, of_layer in layers.items()}
    for layer, of_layer in layers.items():
        if measure is not None:
            values_TC = measured(measure, Confidence(of_layer.logits_NE), top_k, top_k > 1)
            seen[layer].add(measure, values_TC, of_layer.segment_N, kept)
    return CalibrationData(seen, TOP_K, divergence or {}, divergences)


def routed(data: CalibrationData, fitted: RouterFit) -> dict[int, Routing]:
    """The decisions of the fitted policy with its tensors, by layer."""
    checkpoint: dict[str, Any] = fitted.routing()
    in_force = choose_routing(None, checkpoint, data.top_k, dict.fromkeys(data.layers, EXPERTS))
    routings = {}
    for layer, of_layer in data.samples().items():
        step = RouterInputs(
            of_layer.hidden_ND,
            of_layer.logits_NE,
            of_layer.segment_N,
            torch.zeros(len(of_layer.segment_N), 2, dtype=torch.int32),
            fitted.tensors.get(layer, {}),
            EXPERTS,
        )
        routings[layer] = in_force.layers[layer].policy.route(step)
    return routings
