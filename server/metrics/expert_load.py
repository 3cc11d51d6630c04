"""Expert load: what the engine counts, by layer, modality and expert."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class ExpertLoad(BaseModel):
    """Counts since the start, each list by MoE layer, and in it by modality.

    A model whose MoE layers can't be seen has none: its lists are empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    modalities: list[str]
    """Those that the model has, in the order of MODALITIES."""
    layers: list[int]
    """The MoE layers' indices in the decoder."""
    expert_tokens: list[list[list[int]]]
    """By expert: how many tokens used it."""
    tokens: list[list[int]]
    """How many tokens were routed."""
    tail_tokens: list[int]
    """How many vision tokens were tail tokens."""
    tokens_by_experts: list[list[list[int]]]
    """By number of experts, from 0: how many tokens used as many."""
    scored_tokens: list[list[int]]
    """Of how many tokens the next three tell: those whose router gave probabilities, or some of them."""
    near_ties: list[list[int | None]]
    """How many of them had a last used expert that scored less than 0.01 above the best unused one.

    None where the layer's gate gives no order to tell it by.
    """
    routing_entropy: list[list[float]]
    """The sum of their routing entropies, in nats."""
    routing_variance: list[list[float]]
    """The sum of their RPV, the variance of the routing probabilities (LTDR, Eq. 9)."""
    shadow: "ExpertLoad | None" = None
    """What the same tokens would have used by the shadow policy; None without one."""

    @classmethod
    def total(cls, loads: Sequence[Self]) -> Self:
        """What engines that share the requests counted together."""
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
    """The sum of nested lists of equal form, number by number; None of None."""
    if isinstance(counts[0], list):
        return [_sum(part) for part in zip(*counts, strict=True)]
    return None if counts[0] is None else sum(counts)
