"""Fits fixed tail thresholds for `ltdr`, so that an image may be split over steps (LTDR, Eqs. 9 and 11)."""

from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData, RoutedLayer
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, RouterFit
from prismoe.model_plugins.tools.calibrate.fits.quantile import between


def fit(data: CalibrationData, goal: Goal) -> RouterFit:
    """Fit a threshold of RPV for each layer, so that `goal.tail_share` of the vision tokens are above it.

    The default is the share of tokens above the mean of their own image. The mean of the images' means would
    also be a natural threshold, but a different share of tokens is above it, and that share determines the
    experts' work.
    """
    thresholds = {layer: _threshold(seen, goal.tail_share) for layer, seen in data.layers.items()}
    return RouterFit(
        {"policy": "ltdr", **goal.settings},
        {layer: {"threshold": threshold} for layer, threshold in thresholds.items()},
    )


def _threshold(seen: RoutedLayer, tail_share: float | None) -> float:
    variance = seen.sketches["vision"].ranked()
    share = seen.tail_tokens / variance.count if tail_share is None else tail_share
    return between(variance, 1 - share)
