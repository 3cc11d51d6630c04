"""With fitted reservations the minority modality loads the experts evenly, and the majority is unchanged."""

import torch

from prismoe.kernels.routing import router_probabilities, routing_entropy
from prismoe.model_plugins.tools.calibrate.fits import equiroute
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal
from tests.model_plugins.tools.calibrate.fits.recordings import (
    EXPERTS,
    TOP_K,
    calibration_data,
    routed,
    samples,
)


def test_the_minority_uses_the_experts_evenly() -> None:
    data = calibration_data(samples())
    is_text_T = data.samples()[0].segment_N < 0
    assert is_text_T.sum() < (~is_text_T).sum()
    for router in data.samples().values():
        router.logits_NE[is_text_T] += torch.tensor([2.0, 0.0, -1.0, 0.5])
    fitted = equiroute.fit(data, Goal())
    for layer, routing in routed(data, fitted).items():
        plain_TA = data.samples()[layer].logits_NE.topk(TOP_K).indices
        before_E, after_E = (
            torch.bincount(experts_TA[is_text_T].flatten(), minlength=EXPERTS) / is_text_T.sum() / TOP_K
            for experts_TA in (plain_TA, routing.experts_TA)
        )
        assert (before_E - 1 / EXPERTS).abs().max() > 0.15
        assert (after_E - 1 / EXPERTS).abs().max() < 0.02
        assert torch.equal(routing.experts_TA[~is_text_T], plain_TA[~is_text_T])


def test_pressure_is_the_ratio_of_the_entropies() -> None:
    data = calibration_data(samples())
    router = data.samples()[0]
    is_vision_T = router.segment_N >= 0
    router.logits_NE[~is_vision_T] += torch.tensor([3.0, 0.0, 0.0, 0.0])
    tensors = equiroute.fit(data, Goal()).tensors[0]
    probs_TE = router_probabilities(router.logits_NE)
    text, vision = (routing_entropy(probs_TE[m].mean(0)).item() for m in (~is_vision_T, is_vision_T))
    assert text < vision
    assert torch.allclose(tensors["pressure"], torch.tensor([[text / vision], [1.0]]))
    assert torch.equal(tensors["reservation"][1], torch.zeros(EXPERTS))
