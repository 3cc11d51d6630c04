"""Fixed tail thresholds for `ltdr`, so that an image may be split over steps (LTDR, Eqs. 9 and 11)."""

from prismoe.kernels.routing import router_probabilities, routing_probability_variance, tail_tokens
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, RouterFit
from prismoe.model_plugins.tools.calibrate.fits.quantile import between
from prismoe.model_plugins.tools.calibrate.router_recording import CalibrationData, RouterRecording


def fit(data: CalibrationData, goal: Goal) -> RouterFit:
    """A threshold of RPV for each layer that as many vision tokens are above as `goal.tail_share` says.

    By default as many as are above their own image's mean. The mean of the images' means would be as natural
    a threshold, but tokens above it are more or fewer than those, and the share is what the experts' work
    depends on.
    """
    thresholds = {layer: _threshold(router, goal.tail_share) for layer, router in data.layers.items()}
    return RouterFit(
        {"policy": "ltdr", **goal.settings},
        {layer: {"threshold": threshold} for layer, threshold in thresholds.items()},
    )


def _threshold(router: RouterRecording, tail_share: float | None) -> float:
    probs_TE = router_probabilities(router.logits_TE)
    is_vision_T = router.segment_T >= 0
    if tail_share is None:
        tail_share = tail_tokens(probs_TE, router.segment_T)[is_vision_T].double().mean().item()
    return between(routing_probability_variance(probs_TE)[is_vision_T], 1 - tail_share)
