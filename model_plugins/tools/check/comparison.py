"""Compares what the engine computed with a reference, array by array."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from prismoe.model_plugins.tools.check.engine import Run
from prismoe.model_plugins.tools.check.reference import PER_LAYER, Case

EMBEDS_TOLERANCE = ROUTER_LOGITS_TOLERANCE = WEIGHTS_TOLERANCE = 1e-4
LOGITS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Tie:
    """A choice that differs from the reference's, between values whose gap is within the tolerance."""

    at: int
    chosen: list[int]
    reference: list[int]
    gap: float


@dataclass(frozen=True)
class Comparison:
    """The comparison of one array. For ids, the difference is the number of different ones without ties."""

    array: str
    difference: float
    tolerance: float
    at: list[int] | None
    """The place of the largest difference, or of the first different id; None where nothing differs."""
    count: int
    """The number of compared values or ids."""
    ties: list[Tie] = field(default_factory=list)

    @property
    def within(self) -> bool:
        return self.difference <= self.tolerance


def compare(case: Case, run: Run, experts_by_layer: Mapping[int, int]) -> list[Comparison]:
    """Compare every array of the case, in the order of the file."""
    return [_compare(case, run, experts_by_layer, name) for name in case.expected]


def _compare(case: Case, run: Run, experts_by_layer: Mapping[int, int], name: str) -> Comparison:
    array, expected = case.prefix + name, case.expected[name]
    if match := PER_LAYER.fullmatch(name):
        index = int(match[1])
        layer = _Layer(index, experts_by_layer[index], case, run)
        match match[2]:
            case "router_logits":
                return _values(array, layer.logits_TE, expected, ROUTER_LOGITS_TOLERANCE)
            case "topk_ids":
                return layer.compare_ids(array)
            case "topk_weights":
                return layer.compare_weights(array, expected)
            case _:
                return layer.compare_combine(array, expected)
    logits = run.rows["logits"][:, : expected.shape[-1]]
    match name:
        case "inputs_embeds":
            return _values(array, run.rows[name][: case.size], expected, EMBEDS_TOLERANCE)
        case "logits":
            return _values(array, logits[: case.size], expected, LOGITS_TOLERANCE)
        case "greedy_ids":
            return _greedy_ids(array, case, run)
        case _:
            # A step after the first different token has another prompt.
            steps = _equal_steps(case, run) + 1
            return _values(array, logits[case.size - 1 :][:steps], expected[:steps], LOGITS_TOLERANCE)


def _values(array: str, actual: np.ndarray, expected: np.ndarray, tolerance: float) -> Comparison:
    if actual.shape != expected.shape:  # Another policy's router may give no logits, or more of them.
        return Comparison(array, float("inf"), tolerance, None, 0)
    differences = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    differences = np.where(np.isnan(differences), np.inf, differences)
    largest = float(differences.max(initial=0))
    at = [int(i) for i in np.unravel_index(differences.argmax(), differences.shape)] if largest else None
    return Comparison(array, largest, tolerance, at, differences.size)


class _Layer:
    """One layer's routing: T tokens, E experts, A slots, K the reference's experts for each token."""

    def __init__(self, layer: int, num_experts: int, case: Case, run: Run) -> None:
        def rows(name: str) -> np.ndarray:
            return run.rows[f"layer{layer}_{name}"][: case.size]

        self.logits_TE = rows("router_logits")
        self.combine_TE = _combine(rows("topk_ids"), rows("topk_weights"), num_experts)
        self.chosen = [set(np.flatnonzero(weights_E).tolist()) for weights_E in self.combine_TE]
        self.expected_TK: np.ndarray | None = case.expected.get(f"layer{layer}_topk_ids")

    def compare_ids(self, array: str) -> Comparison:
        """Compare each token's experts as a set: the weights already determine their order."""
        assert self.expected_TK is not None
        differing, ties = [], []
        for token in self._other_experts():
            chosen, expected = self.chosen[token], self.expected_TK[token].tolist()
            gap = self._gap(token, chosen - set(expected), set(expected) - chosen)
            if gap <= ROUTER_LOGITS_TOLERANCE:
                ties.append(Tie(token, sorted(chosen), expected, gap))
            else:
                differing.append(token)
        at = differing[:1] or None
        return Comparison(array, len(differing), 0, at, len(self.chosen), ties)

    def compare_weights(self, array: str, expected_TK: np.ndarray) -> Comparison:
        """Compare the weights of the reference's experts, for tokens with the same experts."""
        if self.expected_TK is None or self.expected_TK.shape != expected_TK.shape:
            weights_TK = -np.sort(-self.combine_TE)[:, : expected_TK.shape[1]]
            return _values(array, weights_TK, -np.sort(-expected_TK), WEIGHTS_TOLERANCE)
        experts_TK = self.expected_TK.clip(0, self.combine_TE.shape[1] - 1)
        weights_TK = np.take_along_axis(self.combine_TE, experts_TK, axis=1)
        return self._where_experts_are_equal(array, weights_TK, expected_TK)

    def compare_combine(self, array: str, expected_TE: np.ndarray) -> Comparison:
        """Compare the weights of all experts, for tokens with the same experts."""
        return self._where_experts_are_equal(array, self.combine_TE, expected_TE)

    def _where_experts_are_equal(self, array: str, actual: np.ndarray, expected: np.ndarray) -> Comparison:
        other = self._other_experts() if self.expected_TK is not None else []
        expected = expected.copy()
        expected[other] = actual[other]
        return _values(array, actual, expected, WEIGHTS_TOLERANCE)

    def _other_experts(self) -> list[int]:
        """The tokens whose experts differ from the reference's."""
        assert self.expected_TK is not None
        experts = zip(self.chosen, self.expected_TK.tolist(), strict=True)
        return [token for token, (chosen, expected) in enumerate(experts) if chosen != set(expected)]

    def _gap(self, token: int, only_chosen: set[int], only_expected: set[int]) -> float:
        """The largest gap between the logits of the chosen experts and of the reference's."""
        logits_E = self.logits_TE[token]
        if len(only_chosen) != len(only_expected) or max(only_chosen | only_expected) >= len(logits_E):
            return float("inf")
        return float(np.abs(logits_E[list(only_chosen), None] - logits_E[list(only_expected)]).max())


def _combine(experts_TA: np.ndarray, weights_TA: np.ndarray, num_experts: int) -> np.ndarray:
    """The weight of each expert for each token, `[T, E]`; an unused slot adds 0."""
    combine_TE = np.zeros((len(experts_TA), num_experts))
    np.add.at(combine_TE, (np.arange(len(experts_TA))[:, None], experts_TA), weights_TA)
    return combine_TE


def _equal_steps(case: Case, run: Run) -> int:
    """The number of greedy tokens before the first one that differs from the reference."""
    expected = case.expected.get("greedy_ids")
    if expected is None:
        return 0
    pairs = zip(run.greedy_ids, expected.tolist(), strict=False)
    return next(
        (step for step, (actual, reference) in enumerate(pairs) if actual != reference), len(expected)
    )


def _greedy_ids(array: str, case: Case, run: Run) -> Comparison:
    expected = case.expected["greedy_ids"].tolist()
    step = _equal_steps(case, run)
    if step == len(expected):
        return Comparison(array, 0, 0, None, step)
    logits_V = run.rows["logits"][case.size - 1 + step]
    chosen, reference = run.greedy_ids[step], expected[step]
    gap = (
        float(abs(logits_V[chosen] - logits_V[reference])) if 0 <= reference < len(logits_V) else float("inf")
    )
    if gap <= LOGITS_TOLERANCE:
        return Comparison(array, 0, 0, None, step, [Tie(step, [chosen], [reference], gap)])
    return Comparison(array, len(expected) - step, 0, [step], len(expected))
