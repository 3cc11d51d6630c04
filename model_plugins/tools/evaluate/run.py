"""The results of a model's run over the questions, under one routing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """A run. Counts are exact, by modality, and summed over the MoE layers; empty where nothing is seen."""

    routing: Mapping[str, Any] | None
    """The requested routing; None: the checkpoint's own."""
    policies: Sequence[str]
    """The policies in force in any of the MoE layers."""
    not_seen: Sequence[str]
    """The reasons why nothing was counted, in sentences; empty where it was."""
    answers: Sequence[str]
    expert_uses: Mapping[str, int]
    routed_tokens: Mapping[str, int]
    """The tokens; each token counts once per layer."""
    tokens_per_second: float
    """The tokens of prompts and answers per second; the time includes that for pictures."""
