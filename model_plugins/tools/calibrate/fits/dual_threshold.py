"""Importances and thresholds for `dual_threshold` (MoDES, arXiv 2511.15690)."""

import torch
from torch import Tensor

from prismoe.kernels.routing import top_experts
from prismoe.model_plugins.routing.policy import POLICY_MODALITIES
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, RouterFit
from prismoe.model_plugins.tools.calibrate.fits.quantile import between
from prismoe.model_plugins.tools.calibrate.router_recording import CalibrationData, RouterRecording


def fit(data: CalibrationData, goal: Goal) -> RouterFit:
    """A layer's importance for a modality, and the modalities' thresholds for the shares of uses to skip.

    An importance is the layer's share of the divergences that taking the layers' experts from the modality
    brings (the paper's α). The paper then searches a threshold pair that skips a share of all uses at the
    least divergence; here each modality has a share of its own, so its threshold follows from the recorded
    weights alone.
    """
    top_k = goal.settings.get("top_k", data.top_k)
    normalize = goal.settings.get("norm_topk_prob", top_k != 1)
    keep_best = goal.settings.get("keep_best", True)
    importance = {modality: _importance(data, modality) for modality in POLICY_MODALITIES}
    thresholds = {}
    for modality, skip in zip(POLICY_MODALITIES, (goal.skip_text, goal.skip), strict=True):
        scores = [
            importance[modality][layer] * _weights_of(router, modality, top_k, normalize)
            for layer, router in data.layers.items()
        ]
        thresholds[f"{modality}_threshold"] = _threshold(torch.cat(scores), skip, keep_best)
    return RouterFit(
        {"policy": "dual_threshold", **goal.settings, **thresholds},
        {
            layer: {f"{modality}_importance": importance[modality][layer] for modality in POLICY_MODALITIES}
            for layer in data.layers
        },
    )


def _importance(data: CalibrationData, modality: str) -> dict[int, float]:
    divergence = {layer: by_modality[modality] for layer, by_modality in data.divergence.items()}
    total = sum(divergence.values())
    if total == 0:
        return dict.fromkeys(divergence, 1 / len(divergence))
    return {layer: value / total for layer, value in divergence.items()}


def _weights_of(router: RouterRecording, modality: str, top_k: int, normalize: bool) -> Tensor:
    is_chosen_T = (router.segment_T >= 0) == (modality == POLICY_MODALITIES[1])
    _, weights_TA = top_experts(router.logits_TE[is_chosen_T], top_k, normalize)
    return weights_TA


def _threshold(scores_TA: Tensor, skip: float, keep_best: bool) -> float:
    """The threshold that skips a share of all uses, where each token keeps its first or none in any case."""
    slots = scores_TA.shape[1]
    kept = int(keep_best)
    most = (slots - kept) / slots
    if skip > most:
        raise ValueError(
            f"A token keeps its best expert, so at most {most:.0%} of {slots} uses can be skipped: "
            f"ask for that or less, raise top_k, or set keep_best to false."
        )
    return between(scores_TA[:, kept:].flatten(), skip / most) if skip else 0.0
