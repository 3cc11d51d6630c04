"""Fixed tail thresholds for `ltdr`, so that an image may be split over steps (LTDR, Eqs. 9 and 11)."""

from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData, RoutedLayer
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, RouterFit
from prismoe.model_plugins.tools.calibrate.fits.quantile import between


def fit(data: CalibrationData, goal: Goal) -> RouterFit:
    """A threshold of RPV for each layer that as many vision tokens are above as `goal.tail_share` says.

    By default as many as are above their own image's mean. The mean of the images' means would be as natural
    a threshold, but tokens above it are more or fewer than those, and the share is what the experts' work
    depends on.
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
