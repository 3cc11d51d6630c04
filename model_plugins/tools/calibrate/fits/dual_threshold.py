"""Fits importances and thresholds for `dual_threshold` (MoDES, arXiv 2511.15690)."""

from prismoe.model_plugins.routing.policy import POLICY_MODALITIES
from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, RouterFit
from prismoe.model_plugins.tools.calibrate.fits.frontier import frontier
from prismoe.model_plugins.tools.calibrate.fits.quantile import between
from prismoe.model_plugins.tools.calibrate.fits.sketch import Ranked, merged

TEXT_STEPS, VISION_STEPS = 16, 256
"""The sizes of the grids of thresholds, in equal shares of the uses that can be skipped. Each text threshold
costs at most one run of the calibration prompts, a vision threshold costs none."""


def fit(data: CalibrationData, goal: Goal) -> RouterFit:
    """Fit a layer's importance for each modality, and the modalities' thresholds.

    An importance is the layer's share of the divergences that arise when a layer's experts are taken from the
    modality (the paper's α; get_layer_importance_ddp.py of its released code).

    The thresholds are the pair that skips `goal.skip_overall` of all uses at the least divergence from the
    model's current routing, by the paper's frontier search (grid_search_tau_ddp.py). Two things differ from
    the released code. Its grids follow a sigmoid between bounds set by hand; these grids divide the recorded
    importances into equal shares. And it counts uses while it skips; here the uses recorded before are
    counted, which needs no run, and guarantees that a higher threshold skips more, as the search assumes.

    With `goal.skip` or `goal.skip_text` each modality has its own share, and nothing is searched. Raises
    ValueError where that many uses can't be skipped.
    """
    check(data.top_k, goal)
    most = most_skipped(data.top_k, goal)
    importance = {modality: _importance(data, modality) for modality in POLICY_MODALITIES}
    layers = {
        layer: {f"{modality}_importance": importance[modality][layer] for modality in POLICY_MODALITIES}
        for layer in data.layers
    }

    def scores(modality: str) -> Ranked:
        weights = [seen.sketches[modality] for seen in data.layers.values()]
        return merged(weights, [importance[modality][layer] for layer in data.layers])

    def at(text_threshold: float, vision_threshold: float) -> RouterFit:
        thresholds = {"text_threshold": text_threshold, "vision_threshold": vision_threshold}
        return RouterFit({"policy": "dual_threshold", **goal.settings, **thresholds}, layers)

    if not goal.searches:
        shares = zip(POLICY_MODALITIES, (goal.skip_text, goal.skip), strict=True)
        return at(
            *(_threshold(scores(modality), share / most) if share else 0.0 for modality, share in shares)
        )
    text, vision = map(scores, POLICY_MODALITIES)
    candidates = [at(*pair) for pair in _frontier(text, vision, goal.skip_overall / most)]
    assert data.divergences is not None
    divergences = data.divergences([candidate.routing() for candidate in candidates])
    return candidates[min(range(len(candidates)), key=lambda number: divergences[number])]


def check(top_k: int, goal: Goal) -> None:
    """Raise ValueError where a token of a model with this k can't skip so many experts."""
    slots = goal.settings.get("top_k", top_k)
    most = most_skipped(top_k, goal)
    if max(goal.skip_overall if goal.searches else 0, goal.skip or 0, goal.skip_text or 0) > most:
        raise ValueError(
            f"A token keeps its best expert, so at most {most:.0%} of {slots} uses can be skipped: "
            "ask for that or less, raise top_k, or set keep_best to false."
        )


def kept(goal: Goal) -> int:
    """The number of experts that a token always keeps: its best one, or none."""
    return int(goal.settings.get("keep_best", True))


def most_skipped(top_k: int, goal: Goal) -> float:
    """The share of uses that a token may skip."""
    slots = goal.settings.get("top_k", top_k)
    return (slots - kept(goal)) / slots


def most_tried(goal: Goal) -> int:
    """The most pairs of thresholds that the search tries."""
    return TEXT_STEPS + 1 if goal.searches else 0


def _frontier(text: Ranked, vision: Ranked, share: float) -> list[tuple[float, float]]:
    """The pairs of thresholds to try. `share` is relative to the uses that can be skipped."""
    text_grid, vision_grid = (
        [0.0, *(_threshold(scores, step / steps) for step in range(1, steps + 1))]
        for scores, steps in ((text, TEXT_STEPS), (vision, VISION_STEPS))
    )
    of_text, of_vision = (
        [scores.below(threshold) for threshold in grid]
        for scores, grid in ((text, text_grid), (vision, vision_grid))
    )
    pairs = frontier(
        len(text_grid),
        len(vision_grid),
        lambda i, j: of_text[i] + of_vision[j],
        round(share * (text.count + vision.count)),
    )
    return [(text_grid[i], vision_grid[j]) for i, j in pairs]


def _threshold(scores: Ranked, share: float) -> float:
    """The threshold that a share of the scores is below.

    The last layer's vision tokens don't change an answer, so its importance for vision is 0. Where the share
    ends among such scores, all of them are skipped: that costs nothing, and a threshold of 0 would skip none.
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
