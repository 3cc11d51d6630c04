"""The expert load: the engine's counts of tokens by layer, modality and expert."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class ExpertLoad(BaseModel):
    """The counts since the start: lists with an entry for each MoE layer, and in it for each modality.

    The lists are empty if prismoe can't see the model's MoE layers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    modalities: list[str]
    """The model's modalities: some of text, image, video and audio, in this order."""
    layers: list[int]
    """The MoE layers' indices in the decoder."""
    expert_tokens: list[list[list[int]]]
    """The number of tokens that used each expert, by expert."""
    tokens: list[list[int]]
    """The number of routed tokens."""
    tail_tokens: list[int]
    """The number of vision tokens that were tail tokens, only by layer."""
    tokens_by_experts: list[list[list[int]]]
    """The number of tokens that used 0, 1, 2 and more experts, by number of experts."""
    scored_tokens: list[list[int]]
    """The number of scored tokens: those whose router gave probabilities, or a sample of them."""
    near_ties: list[list[int | None]]
    """The number of scored tokens whose last used expert scored less than 0.01 above the best unused one.

    None if the layer's gate does not order the experts by scores.
    """
    routing_entropy: list[list[float]]
    """The sum of the scored tokens' routing entropies, in nats."""
    routing_variance: list[list[float]]
    """The sum of the scored tokens' RPV, the variance of the routing probabilities (LTDR, Eq. 9)."""
    shadow: "ExpertLoad | None" = None
    """The load that the same tokens would have caused under the shadow policy; None without one."""

    @classmethod
    def total(cls, loads: Sequence[Self]) -> Self:
        """Return the sum of the counts of engines that share the requests."""
        counts = {
            name: _sum([getattr(load, name) for load in loads])
            for name in cls.model_fields
            if name not in ("modalities", "layers", "shadow")
        }
        shadows = [load.shadow for load in loads if load.shadow is not None]
        return cls(
            modalities=loads[0].modalities,
            layers=loads[0].layers,
            shadow=ExpertLoad.total(shadows) if shadows else None,
            **counts,
        )


def _sum(counts: Sequence[Any]) -> Any:
    """Return the sum of nested lists of equal form, number by number. The sum of None is None."""
    if isinstance(counts[0], list):
        return [_sum(part) for part in zip(*counts, strict=True)]
    return None if counts[0] is None else sum(counts)
