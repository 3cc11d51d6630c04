"""Importances and thresholds for `dual_threshold` (MoDES, arXiv 2511.15690)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prismoe.kernels.routing import top_experts
from prismoe.model_plugins.routing.policy import POLICY_MODALITIES
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, RouterFit
from prismoe.model_plugins.tools.calibrate.fits.frontier import frontier
from prismoe.model_plugins.tools.calibrate.fits.quantile import between_sorted
from prismoe.model_plugins.tools.calibrate.router_recording import CalibrationData, RouterRecording

TEXT_STEPS, VISION_STEPS = 16, 256
"""Of the grids of thresholds, in equal shares of the uses that can be skipped. Each of text's costs at most
one run of the calibration prompts, vision's cost none."""


def fit(data: CalibrationData, goal: Goal) -> RouterFit:
    """A layer's importance for a modality, and the modalities' thresholds.

    An importance is the layer's share of the divergences that taking the layers' experts from the modality
    brings (the paper's α; get_layer_importance_ddp.py of its released code).

    The thresholds are the pair that skips `goal.skip_overall` of all uses at the least divergence from the
    model as it routes now, by the paper's frontier search (grid_search_tau_ddp.py). Two things differ from
    the released code. Its grids are a sigmoid's between bounds set by hand; these part the recorded
    importances in equal shares. And it counts the uses while it skips; here those are counted that were
    recorded before, which takes no run, and more go under a higher threshold without exception, which the
    search takes for granted.

    With `goal.skip` or `goal.skip_text` each modality has a share of its own, and nothing is searched.

    Raises ValueError with a sentence where so many uses can't be skipped.
    """
    top_k = goal.settings.get("top_k", data.top_k)
    normalize = goal.settings.get("norm_topk_prob", top_k != 1)
    least = int(goal.settings.get("keep_best", True))
    importance = {modality: _importance(data, modality) for modality in POLICY_MODALITIES}
    text, vision = (
        _Uses.of(
            [
                importance[modality][layer] * _weights_of(router, modality, top_k, normalize)
                for layer, router in data.layers.items()
            ],
            least,
        )
        for modality in POLICY_MODALITIES
    )
    layers = {
        layer: {f"{modality}_importance": importance[modality][layer] for modality in POLICY_MODALITIES}
        for layer in data.layers
    }

    def at(text_threshold: float, vision_threshold: float) -> RouterFit:
        thresholds = {"text_threshold": text_threshold, "vision_threshold": vision_threshold}
        return RouterFit({"policy": "dual_threshold", **goal.settings, **thresholds}, layers)

    for share in (goal.skip_overall, goal.skip or 0, goal.skip_text or 0):
        _check(share, top_k, least)
    if not goal.searches:
        return at(text.threshold(goal.skip_text or 0), vision.threshold(goal.skip or 0))
    candidates = [at(*pair) for pair in _frontier(text, vision, goal.skip_overall, (top_k - least) / top_k)]
    divergences = data.divergences([candidate.routing() for candidate in candidates])
    return candidates[min(range(len(candidates)), key=lambda number: divergences[number])]


@dataclass(frozen=True)
class _Uses:
    """A modality's uses of experts in all layers: their number, and the importances of those that can go.

    They rise.
    """

    count: int
    importance_N: Tensor

    @classmethod
    def of(cls, layers_TA: list[Tensor], least: int) -> "_Uses":
        """`layers_TA` are the importances of each layer, of which a token keeps the first `least`."""
        scores_TA = torch.cat(layers_TA)
        return cls(scores_TA.numel(), scores_TA[:, least:].flatten().double().sort().values)

    def threshold(self, share: float) -> float:
        """The one that skips a share of all uses."""
        of_these = min(share * self.count / max(len(self.importance_N), 1), 1)
        return between_sorted(self.importance_N, of_these) if share else 0.0

    def skipped(self, threshold: float) -> int:
        """How many go under a threshold."""
        return int(torch.searchsorted(self.importance_N, threshold))


def _frontier(text: _Uses, vision: _Uses, share: float, most: float) -> list[tuple[float, float]]:
    """The pairs of thresholds that are to be tried. `most` is the share of uses that can be skipped."""
    text_grid, vision_grid = (
        [uses.threshold(most * step / steps) for step in range(steps + 1)]
        for uses, steps in ((text, TEXT_STEPS), (vision, VISION_STEPS))
    )
    of_text, of_vision = (
        [uses.skipped(threshold) for threshold in grid]
        for uses, grid in ((text, text_grid), (vision, vision_grid))
    )
    pairs = frontier(
        len(text_grid),
        len(vision_grid),
        lambda i, j: of_text[i] + of_vision[j],
        round(share * (text.count + vision.count)),
    )
    return [(text_grid[i], vision_grid[j]) for i, j in pairs]


def _importance(data: CalibrationData, modality: str) -> Mapping[int, float]:
    divergence = {layer: by_modality[modality] for layer, by_modality in data.divergence.items()}
    total = sum(divergence.values())
    if total == 0:
        return dict.fromkeys(divergence, 1 / len(divergence))
    return {layer: value / total for layer, value in divergence.items()}


def _weights_of(router: RouterRecording, modality: str, top_k: int, normalize: bool) -> Tensor:
    is_chosen_T = (router.segment_T >= 0) == (modality == POLICY_MODALITIES[1])
    _, weights_TA = top_experts(router.logits_TE[is_chosen_T], top_k, normalize)
    return weights_TA


def _check(share: float, slots: int, least: int) -> None:
    most = (slots - least) / slots
    if share > most:
        raise ValueError(
            f"A token keeps its best expert, so at most {most:.0%} of {slots} uses can be skipped: "
            f"ask for that or less, raise top_k, or set keep_best to false."
        )
