"""The rules that fused routers can follow, as policies describe them.

See `prismoe.kernels.triton.router`, and `prismoe.kernels.triton.mixture` for a `MixtureRule`.
"""

from typing import NamedTuple

from torch import Tensor

from prismoe.kernels.expert_load import Confidence


class ByModality(NamedTuple):
    """The same number of experts for all tokens of a modality."""

    text: int
    vision: int


Threshold = float | Tensor
"""A number, or a 0-d float32 tensor on the device, which may change while requests run."""


class ByTail(NamedTuple):
    """`selected` experts for some vision tokens, `vision` for the others (LTDR, Eqs. 9, 11 and 12).

    Tail tokens are selected, or with `selects_head` all other vision tokens. A tail token's RPV is above the
    `threshold`, or without one above the mean of the vision tokens with the same number in `compared_T` (by
    default: of the same image). `asked_T2` holds the numbers of experts that a request asks for, for selected
    and for other tokens; they replace the rule's, up to the slots, and 0 asks for nothing.
    """

    text: int
    vision: int
    selected: int
    threshold: Threshold | None
    selects_head: bool
    asked_T2: Tensor | None = None
    compared_T: Tensor | None = None


class ByEntropy(NamedTuple):
    """From `least` experts to all slots, as entropy / log E goes from `low` to `high` (GeMoE)."""

    least: int
    low: Threshold
    high: Threshold


class ByImportance(NamedTuple):
    """The slots whose weight times importance reaches the modality's threshold; at least `least` (MoDES)."""

    least: int
    text_importance: float
    vision_importance: float
    text_threshold: Threshold
    vision_threshold: Threshold


class MixtureRule(NamedTuple):
    """The expert of the token's most probable component, by mixture (IDA-MoE, Eqs. 14 and 16 to 19)."""

    latent_TL: Tensor
    log_mixing_KEM: Tensor
    means_KEML: Tensor
    log_variances_KEML: Tensor


class FusedRule(NamedTuple):
    """A token's `slots` best experts by `scores_TE`, or by its logits; `uses` says how many of them it uses.

    The weights are the router's probabilities, with `renormalize` scaled to a sum of 1. The E experts with a
    score are followed by the `shared` ones, which every token uses at weight 1.
    """

    confidence: Confidence
    uses: ByModality | ByTail | ByEntropy | ByImportance
    slots: int
    renormalize: bool
    scores_TE: Tensor | None = None
    shared: int = 0
