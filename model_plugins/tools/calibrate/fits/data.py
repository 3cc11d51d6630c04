"""The recorded data of a model's routers, for the fits and the report.

Shape legend: T tokens, C numbers of a token, N kept tokens, D hidden, E experts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from prismoe.kernels.routing import segment_mean
from prismoe.model_plugins.routing.measures import Measure
from prismoe.model_plugins.routing.policy import POLICY_MODALITIES
from prismoe.model_plugins.tools.calibrate.fits.sketch import QuantileSketch

Divergences = Callable[[Sequence[Mapping[str, Any]]], Sequence[float]]


@dataclass(frozen=True)
class TokenSample:
    """A sample of a layer's tokens; legend and segments as in `kernels.routing`.

    `segment_N` numbers the images over all requests. Hidden states, which need much memory, are only kept for
    policies that are fitted to them.
    """

    logits_NE: Tensor  # float32
    segment_N: Tensor  # int64
    hidden_ND: Tensor  # float32


@dataclass
class RoutedLayer:
    """One MoE layer over the tokens of many requests."""

    num_experts: int
    sample: TokenSample | None = None
    """The sample, for a policy that is fitted by tensors and not by numbers alone."""
    sketches: Mapping[str, QuantileSketch] = field(
        default_factory=lambda: {modality: QuantileSketch() for modality in POLICY_MODALITIES}
    )
    """The sketches of the policy's measure, for each of POLICY_MODALITIES."""
    tail_tokens: int = 0
    """The number of vision tokens whose RPV is above the mean of their own image."""

    def add(self, measure: Measure, values_TC: Tensor, segment_T: Tensor, kept: int) -> None:
        """Add a request's tokens. The `kept` best weights of a token can't be skipped."""
        is_vision_T = segment_T >= 0
        if measure == "variance":
            value_T = values_TC[:, 0].double()
            above_T = value_T > segment_mean(value_T, segment_T)
            self.tail_tokens += int((is_vision_T & above_T).sum())
        of_modality = dict(zip(POLICY_MODALITIES, (~is_vision_T, is_vision_T), strict=True))
        for modality, chosen_T in of_modality.items():
            self.sketches[modality].add(values_TC[chosen_T, kept if measure == "weights" else 0 :])


@dataclass(frozen=True)
class CalibrationData:
    """The recorded routers by the decoder's layer index, and how they use their logits."""

    layers: Mapping[int, RoutedLayer]
    top_k: int
    """The model's k."""
    divergence: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    """The change of the output when a layer gives a modality no experts: the mean KL divergence of the
    answers' tokens in nats, by layer and modality. Empty where the fit does not need it."""
    divergences: Divergences | None = None
    """Computes the same for each of some routings of the whole model. None where the fit does not need it."""

    def samples(self) -> dict[int, TokenSample]:
        """The sample of each layer that has one."""
        return {layer: seen.sample for layer, seen in self.layers.items() if seen.sample is not None}

    @property
    def rank_error(self) -> float:
        """The largest error of a rank in any sketch, as a share of the sketch's values."""
        sketches = [sketch for seen in self.layers.values() for sketch in seen.sketches.values()]
        return max((sketch.rank_error / max(1, sketch.count) for sketch in sketches), default=0.0)
