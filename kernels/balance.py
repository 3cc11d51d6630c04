"""Measures how evenly tokens spread over experts, within a modality and between modalities.

Each function takes one layer's `used_ME`: how many tokens of each of the model's modalities (rows, text
first) used each expert. The result is NaN where nothing was counted.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prismoe.kernels.modalities import VISION

Counts = NDArray[np.int64]

FAIR_SHARE_OF_USE = 0.5
MOST_LOADED_FRACTION = 4  # EquiRoute looks at four of its 16 experts
TEXT = 0


def variation(load_E: Counts) -> float:
    """The coefficient of variation of the experts' load: 0 where all loads are equal, at most √(E - 1).

    Its mean over the layers is IDA-MoE's CV_mean.
    """
    mean = load_E.mean()
    return float(load_E.std() / mean) if mean > 0 else math.nan


def modality_equity(
    used_ME: Counts, modalities: Sequence[str], least_share: float = FAIR_SHARE_OF_USE
) -> float:
    """The Modality Equity Index (MEI, EquiRoute): the share of the experts that all of `modalities` use.

    Image and video count as one modality, vision, since EquiRoute compares text with vision. A modality uses
    an expert that serves at least one of its tokens, and at least `least_share` of the modality's fair share,
    its uses / E. With 0 any use counts; that fits a few tokens, but over minutes of traffic all experts see
    some of everything, and the index would always be 1. A modality that used no expert is left out; the index
    is NaN where fewer than two remain.

    The paper's text, as far as it was at hand, calls the index a "diagnostic for cross-modality similarity in
    expert access" and gives no formula. This one is inferred: it measures access, and all six values that the
    paper reports for 16 experts (0.250, 0.625, 0.750, 0.875 twice and 0.938) are sixteenths, as any share of
    16 experts is.
    """
    is_vision_M = np.array([modality in VISION for modality in modalities])
    apart_ME = np.vstack([used_ME[~is_vision_M], used_ME[is_vision_M].sum(axis=0)])
    present_ME = apart_ME[apart_ME.any(axis=1)]
    if len(present_ME) < 2:
        return math.nan
    fair_M1 = present_ME.sum(axis=1, keepdims=True) / present_ME.shape[1]
    uses_ME = (present_ME > 0) & (present_ME >= least_share * fair_M1)
    return float(uses_ME.all(axis=0).mean())


def text_among_most_loaded(used_ME: Counts) -> float:
    """The share of text in the uses of the most loaded quarter of the experts (EquiRoute: 4 of 16)."""
    load_E = used_ME.sum(axis=0)
    most_loaded = np.argsort(-load_E, kind="stable")[: max(1, len(load_E) // MOST_LOADED_FRACTION)]
    used = used_ME[:, most_loaded].sum(axis=1)
    return float(used[TEXT] / used.sum()) if used.sum() > 0 else math.nan


def idle_experts(used_ME: Counts, tokens_M: Counts) -> list[float]:
    """For each modality, how many experts none of its tokens used; NaN for a modality without tokens."""
    idle_M = (used_ME == 0).sum(axis=1)
    return [float(idle) if tokens else math.nan for idle, tokens in zip(idle_M, tokens_M, strict=True)]


def text_share(used_ME: Counts) -> list[float]:
    """For each expert, the share of text in the tokens that used it; NaN for an expert without tokens."""
    load_E = used_ME.sum(axis=0)
    share_E = np.divide(used_ME[TEXT], load_E, out=np.full(len(load_E), math.nan), where=load_E > 0)
    return [float(share) for share in share_E]
