"""What a fused router is told of a step, by a policy that can say its rule in these words.

See `prismoe.kernels.triton.router`, and `prismoe.kernels.triton.mixture` for a `MixtureRule`.
"""

from typing import NamedTuple

from torch import Tensor

from prismoe.kernels.expert_load import Confidence


class ByModality(NamedTuple):
    """As many experts for all tokens of a modality."""

    text: int
    vision: int


Threshold = float | Tensor
"""A number, or where it may change while requests run a float32 one of no dimensions on the device."""


class ByTail(NamedTuple):
    """`selected` experts for some vision tokens, `vision` for the others (LTDR, Eqs. 9, 11 and 12).

    Tail tokens are selected, with `selects_head` those that are none. A tail token's RPV is above the mean of
    the vision tokens with its number in `compared_T`, by default of its image, or above the `threshold`.
    Instead a request may ask for numbers of its own, up to the slots, in `asked_T2`: for selected tokens and
    for others, 0 asking nothing.
    """

    text: int
    vision: int
    selected: int
    threshold: Threshold | None
    selects_head: bool
    asked_T2: Tensor | None = None
    compared_T: Tensor | None = None


class ByEntropy(NamedTuple):
    """From `least` experts to all slots, as entropy over log E goes from `low` to `high` (GeMoE)."""

    least: int
    low: Threshold
    high: Threshold


class ByImportance(NamedTuple):
    """The slots whose weight times the modality's importance reaches its threshold, but `least` (MoDES)."""

    least: int
    text_importance: float
    vision_importance: float
    text_threshold: Threshold
    vision_threshold: Threshold


class MixtureRule(NamedTuple):
    """For each mixture the expert of the token's most probable component (IDA-MoE, Eqs. 14 and 16 to 19)."""

    latent_TL: Tensor
    log_mixing_KEM: Tensor
    means_KEML: Tensor
    log_variances_KEML: Tensor


class FusedRule(NamedTuple):
    """A token's `slots` best experts by `scores_TE`, of which it uses as many as `uses` says.

    Without scores the logits rank. The weights are the router's probabilities, with `renormalize` scaled to a
    sum of 1. Behind the E experts with a score come the `shared` ones of every token, at weight 1.
    """

    confidence: Confidence
    uses: ByModality | ByTail | ByEntropy | ByImportance
    slots: int
    renormalize: bool
    scores_TE: Tensor | None = None
    shared: int = 0
