"""Expert load by modality as text."""

from typing import Any

from prismoe.kernels.modalities import MODALITIES
from prismoe.server.metrics.expert_load import ExpertLoad


def load_table(load: ExpertLoad) -> str:
    """One line per layer and modality: its tokens, and how its picks of experts are shared among them."""
    experts = max((len(row) for rows in load.expert_tokens for row in rows), default=0)
    heading = [
        "layer",
        "modality",
        "tokens",
        *(f"expert {expert}" for expert in range(experts)),
        "experts/token",
    ]
    lines = [heading]
    for layer, by_modality, tokens in zip(load.layers, load.expert_tokens, load.tokens, strict=True):
        for modality, counts, token_count in zip(MODALITIES, by_modality, tokens, strict=True):
            picks = sum(counts)
            shares = [f"{count} ({count / max(picks, 1):4.0%})" for count in counts]
            shares += [""] * (experts - len(counts))
            lines.append(
                [str(layer), modality, str(token_count), *shares, f"{picks / max(token_count, 1):.2f}"]
            )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def tail_sentence(load: ExpertLoad, layers: list[dict[str, Any]]) -> str:
    """How many vision tokens were tail tokens, and what they used. `layers` are /v1/routing's."""
    tail, vision = sum(load.tail_tokens), sum(tokens[MODALITIES.index("vision")] for tokens in load.tokens)
    policies = {layer["policy"]["policy"] for layer in layers}
    if not any("tail_experts" in layer["policy"] for layer in layers):
        return f"The policy in force ({', '.join(sorted(policies))}) knows no tail tokens."
    used = {layer["policy"]["tail_experts"] or layer["experts"] for layer in layers}
    experts = {layer["experts"] for layer in layers}
    all_of_them = "all " if used == experts else ""
    return (
        f"{tail} of {vision} vision tokens ({tail / max(vision, 1):.1%}, over {len(layers)} MoE layers) were "
        f"tail tokens and used {all_of_them}{' or '.join(map(str, sorted(used)))} experts."
    )
