"""What was recorded of a router: what calibration fits routers to, and reports about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class RouterRecording:
    """One MoE layer over the tokens of many requests; legend and segments as in `kernels.routing`.

    `segment_T` numbers the images over all requests. Hidden states take much room, so there are `hidden_ND`
    for the tokens `sample_N` alone, which are drawn at random.
    """

    logits_TE: Tensor  # float32
    segment_T: Tensor  # int64
    hidden_ND: Tensor  # float32
    sample_N: Tensor  # int64

    @property
    def num_experts(self) -> int:
        return self.logits_TE.shape[1]


@dataclass(frozen=True)
class CalibrationData:
    """The recorded routers by the decoder's layer index, and how they use their logits."""

    layers: Mapping[int, RouterRecording]
    top_k: int
    """The checkpoint's k."""
    divergence: Mapping[int, Mapping[str, float]]
    """How far the output moves when a layer gives a modality no experts: the mean KL divergence of the
    answers' tokens in nats, by layer and modality. Empty where it was not asked for."""
    divergences: Callable[[Sequence[Mapping[str, Any]]], Sequence[float]]
    """The same measure of the model under each of some routings, for as long as its engine runs."""
