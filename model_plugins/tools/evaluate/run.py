"""What a model did with the questions under one routing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """Counts are exact, by modality, and summed over the MoE layers; empty where those can't be seen."""

    routing: Mapping[str, Any] | None
    """As it was asked for; None: the checkpoint's own."""
    policies: Sequence[str]
    """In force, over all MoE layers."""
    not_seen: Sequence[str]
    """Why nothing was counted, in sentences; empty where it was."""
    answers: Sequence[str]
    expert_uses: Mapping[str, int]
    routed_tokens: Mapping[str, int]
    """Each token once a layer."""
    tokens_per_second: float
    """Of prompts and answers, the time for the pictures included."""
