"""Importances and thresholds for `dual_threshold` (MoDES, arXiv 2511.15690)."""

from prismoe.model_plugins.routing.policy import POLICY_MODALITIES
from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, RouterFit
from prismoe.model_plugins.tools.calibrate.fits.quantile import between
from prismoe.model_plugins.tools.calibrate.fits.sketch import Ranked, merged


def fit(data: CalibrationData, goal: Goal) -> RouterFit:
    """A layer's importance for a modality, and the modalities' thresholds for the shares of uses to skip.

    An importance is the layer's share of the divergences that taking the layers' experts from the modality
    brings (the paper's α). The paper then searches a threshold pair that skips a share of all uses at the
    least divergence; here each modality has a share of its own, so its threshold follows from the recorded
    weights alone.
    """
    check(data.top_k, goal)
    importance = {modality: _importance(data, modality) for modality in POLICY_MODALITIES}
    thresholds = {}
    for modality, skip in zip(POLICY_MODALITIES, (goal.skip_text, goal.skip), strict=True):
        thresholds[f"{modality}_threshold"] = 0.0
        if skip:
            weights = [seen.sketches[modality] for seen in data.layers.values()]
            scores = merged(weights, [importance[modality][layer] for layer in data.layers])
            thresholds[f"{modality}_threshold"] = _threshold(scores, skip / most_skipped(data.top_k, goal))
    return RouterFit(
        {"policy": "dual_threshold", **goal.settings, **thresholds},
        {
            layer: {f"{modality}_importance": importance[modality][layer] for modality in POLICY_MODALITIES}
            for layer in data.layers
        },
    )


def check(top_k: int, goal: Goal) -> None:
    """Raise ValueError with a sentence where a token of a model with this k can't skip so much."""
    slots = goal.settings.get("top_k", top_k)
    most = most_skipped(top_k, goal)
    if max(goal.skip, goal.skip_text) > most:
        raise ValueError(
            f"A token keeps its best expert, so at most {most:.0%} of {slots} uses can be skipped: "
            f"ask for that or less, raise top_k, or set keep_best to false."
        )


def kept(goal: Goal) -> int:
    """How many experts a token keeps in any case: its best or none."""
    return int(goal.settings.get("keep_best", True))


def most_skipped(top_k: int, goal: Goal) -> float:
    """The share of uses that a token doesn't keep in any case."""
    slots = goal.settings.get("top_k", top_k)
    return (slots - kept(goal)) / slots


def _threshold(scores: Ranked, share: float) -> float:
    """What a share of the scores is below.

    The last layer's vision tokens move no answer, so its importance for vision is 0. Where the share ends
    among such scores, all of them are skipped: that costs nothing, and at 0 none would be.
    """
    positive_N = scores.values_N[scores.values_N > 0]
    threshold = between(scores, share)
    return positive_N[0].item() / 2 if threshold == 0 and len(positive_N) else threshold


def _importance(data: CalibrationData, modality: str) -> dict[int, float]:
    divergence = {layer: by_modality[modality] for layer, by_modality in data.divergence.items()}
    total = sum(divergence.values())
    if total == 0:
        return dict.fromkeys(divergence, 1 / len(divergence))
    return {layer: value / total for layer, value in divergence.items()}
