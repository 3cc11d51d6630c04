"""The routing equations for one token at a time, in float64: the reference for the fast forms."""

from collections.abc import Callable

import numpy as np

TEXT, PADDING = -1, -2


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The probabilities of LTDR, Eq. 6."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def tail(probs: np.ndarray, segments: list[int]) -> list[bool]:
    """The tail tokens of LTDR, Eqs. 9 and 11, with the mean over the token's own image."""
    rpv = [float(np.mean((row - row.mean()) ** 2)) for row in probs]
    flags = []
    for token, image in enumerate(segments):
        same_image = [rpv[other] for other, segment in enumerate(segments) if segment == image]
        flags.append(image >= 0 and rpv[token] > sum(same_image) / len(same_image))
    return flags


def experts(probs: np.ndarray, counts: list[int], renormalize: bool) -> list[dict[int, float]]:
    """Each token's experts and weights (LTDR, Eqs. 7 and 12). Ties take the lower index."""
    chosen = []
    for row, count in zip(probs, counts, strict=True):
        order = sorted(range(len(row)), key=lambda expert: (-row[expert], expert))[:count]
        total = sum(row[expert] for expert in order) if renormalize else 1.0
        chosen.append({expert: row[expert] / total for expert in order})
    return chosen


def moe(
    hidden: np.ndarray,
    weights: np.ndarray,
    experts: np.ndarray,
    expert: Callable[[int, np.ndarray], np.ndarray],
) -> np.ndarray:
    """The weighted sum of each token's used experts (LTDR, Eq. 8)."""
    return np.array(
        [
            sum(
                (weight * expert(index, row) for weight, index in zip(*slots, strict=True) if weight),
                start=np.zeros_like(row),
            )
            for row, *slots in zip(hidden, weights, experts, strict=True)
        ]
    )


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
