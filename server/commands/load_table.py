"""Writes the expert load by modality as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from prismoe.kernels.modalities import VISION
from prismoe.server.metrics.expert_load import ExpertLoad

MAX_COLUMNS = 16
"""The most experts that get a column each. With more, only the most and the least loaded are shown."""


def load_table(load: ExpertLoad) -> str:
    """Return a table with a line for each layer and modality: the tokens, and how many used each expert."""
    experts = max((len(row) for rows in load.expert_tokens for row in rows), default=0)
    shows_all = experts <= MAX_COLUMNS
    columns = (
        [f"expert {expert}" for expert in range(experts)] if shows_all else ["most loaded", "least loaded"]
    )
    lines = [["layer", "modality", "tokens", *columns, "experts/token"]]
    for layer, by_modality, tokens in zip(load.layers, load.expert_tokens, load.tokens, strict=True):
        for modality, counts, token_count in zip(load.modalities, by_modality, tokens, strict=True):
            picks = sum(counts)
            cells = [f"{count} ({count / max(picks, 1):4.0%})" for count in counts]
            cells = cells + [""] * (experts - len(counts)) if shows_all else most_and_least_loaded(counts)
            lines.append(
                [str(layer), modality, str(token_count), *cells, f"{picks / max(token_count, 1):.2f}"]
            )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def most_and_least_loaded(counts: Sequence[int]) -> list[str]:
    """Return the most and the least loaded expert, each with its share; empty texts without load."""
    picks = sum(counts)
    if not picks:
        return ["", ""]
    return [f"{counts.index(count)} ({count / picks:.1%})" for count in (max(counts), min(counts))]


def tail_sentence(load: ExpertLoad, routing: Mapping[str, Any]) -> str:
    """Return a sentence about the tail tokens and the experts that they used.

    `routing` is the answer of /v1/routing.
    """
    layers = routing["layers"]
    tail = sum(load.tail_tokens)
    vision = sum(
        count
        for tokens in load.tokens
        for modality, count in zip(load.modalities, tokens, strict=True)
        if modality in VISION
    )
    policies = ", ".join(sorted({layer["policy"]["policy"] for layer in layers}))
    if routing["in_force"] == "native" != policies:
        return f"The model's native routing is in force, not its policy ({policies})."
    layers_with_tail = [layer for layer in layers if "tail_experts" in layer["policy"]]
    if not layers_with_tail:
        return f"The policy in force ({policies}) has no tail tokens."
    used = {layer["policy"]["tail_experts"] or layer["experts"] for layer in layers_with_tail}
    experts = {layer["experts"] for layer in layers_with_tail}
    all_of_them = "all " if used == experts else ""
    return (
        f"{tail} of {vision} vision tokens ({tail / max(vision, 1):.1%}, over {len(layers)} MoE layers) were "
        f"tail tokens and used {all_of_them}{' or '.join(map(str, sorted(used)))} experts."
    )
