"""Gates, and policies under them, for one token at a time in float64: the reference for the fast forms."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.model_plugins.routing.policy_reference import Pairs, Policy, best, steered

SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "softmax": lambda logits: np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum(),
    "sigmoid": lambda logits: 1 / (1 + np.exp(-logits)),
    "sqrtsoftplus": lambda logits: np.sqrt(np.logaddexp(0, logits)),
}


@dataclass(frozen=True)
class GateRule:
    """A gate by its model's paper or code."""

    scoring: str = "softmax"
    renormalises: bool = True
    groups: tuple[int, int] | None = None
    bias: Any = 0.0
    scale: float = 1.0
    expert_scale: Any = 1.0

    def scores(self, logits: np.ndarray) -> np.ndarray:
        return SCORES[self.scoring](logits)

    def shares(self, logits: np.ndarray) -> np.ndarray:
        """The probabilities for RPV and entropy."""
        scores = self.scores(logits)
        return scores / scores.sum()

    def ranking(self, logits: np.ndarray, in_groups: bool = True) -> np.ndarray:
        """The values that rank the experts: DeepSeek-V3, Eqs. 15 and 16, and its node-limited routing."""
        return self.ranked(self.scores(logits), in_groups)

    def ranked(self, scores: np.ndarray, in_groups: bool = True) -> np.ndarray:
        """The ranking values of the scores."""
        ranking: np.ndarray = scores + self.bias
        if self.groups is None or not in_groups:
            return ranking
        groups, used = self.groups
        parts = ranking.reshape(groups, -1)
        tops = 1 if np.isscalar(self.bias) else 2
        allowed = best(np.sort(parts, axis=1)[:, -tops:].sum(axis=1), used)
        return np.where(np.isin(np.arange(groups), allowed)[:, None], parts, -np.inf).ravel()

    def weigh(self, picks: list[int], logits: np.ndarray, among: list[int] | None = None) -> Pairs:
        """The weights of these experts, renormalised over `among` (by default these) if the gate does so."""
        scores = self.scores(logits)
        total = sum(scores[expert] for expert in among or picks) if self.renormalises else 1.0
        factors = self.scale * np.broadcast_to(self.expert_scale, scores.shape)
        return [(expert, float(scores[expert] / total * factors[expert])) for expert in picks]


@dataclass(frozen=True)
class GateStep:
    """A step's logits, and its tokens' modalities."""

    logits: np.ndarray
    is_vision: list[bool]
    parameters: Mapping[str, np.ndarray]


def topk(policy: Policy, gate: GateRule, logits: np.ndarray, is_vision: bool, _: Any) -> Pairs:
    return gate.weigh(best(gate.ranking(logits), policy.top_k), logits)


def dual_threshold(policy: Policy, gate: GateRule, logits: np.ndarray, is_vision: bool, _: Any) -> Pairs:
    """MoDES: those of the model's own k experts whose share is large enough; else the heaviest, or none."""
    chosen = best(gate.ranking(logits), policy.top_k)
    shares = gate.shares(logits)
    total = sum(shares[expert] for expert in chosen) if gate.renormalises else 1.0
    modality = "vision" if is_vision else "text"
    importance, least = (getattr(policy, f"{modality}_{name}") for name in ("importance", "threshold"))
    kept = [expert for expert in chosen if importance * shares[expert] / total >= least]
    if not kept and policy.keep_best:
        kept = [max(chosen, key=lambda expert: shares[expert])]
    return gate.weigh(kept, logits, among=chosen)


def ltdr(policy: Policy, gate: GateRule, logits: np.ndarray, is_vision: bool, _: Any) -> Pairs:
    """LTDR, Eqs. 9 and 12, with a fixed threshold."""
    shares = gate.shares(logits)
    is_tail = is_vision and np.mean((shares - shares.mean()) ** 2) > policy.threshold
    head, text = policy.head_experts or policy.top_k, policy.text_experts or policy.top_k
    count = policy.tail_experts if is_tail else head if is_vision else text
    return gate.weigh(best(gate.ranking(logits), count), logits)


def entropy(policy: Policy, gate: GateRule, logits: np.ndarray, is_vision: bool, _: Any) -> Pairs:
    """GeMoE as it is understood here, of the shares."""
    most, shares = policy.max_experts, gate.shares(logits)
    uncertainty = -sum(p * math.log(p) for p in shares if p > 0) / math.log(len(logits))
    part = (uncertainty - policy.low) / (policy.high - policy.low) * (most - policy.min_experts + 1)
    count = min(max(policy.min_experts + math.floor(part), policy.min_experts), most)
    return gate.weigh(best(gate.ranking(logits), count), logits)


def modality_groups(policy: Policy, gate: GateRule, logits: np.ndarray, is_vision: bool, _: Any) -> Pairs:
    """The best of the modality's own experts. Their shares are of the scores of these experts only."""
    is_visions = np.arange(len(logits)) < (policy.vision_group or len(logits) // 2)
    ranking = np.where(is_visions == is_vision, gate.ranking(logits, in_groups=False), -np.inf)
    picks = best(ranking, policy.vision_experts if is_vision else policy.text_experts)
    scores = gate.scores(logits)
    factor = 1.0 if gate.renormalises else scores.sum() / scores[is_visions == is_vision].sum()
    return [(expert, weight * factor) for expert, weight in gate.weigh(picks, logits)]


def equiroute(
    policy: Policy, gate: GateRule, logits: np.ndarray, is_vision: bool, own: Mapping[str, np.ndarray]
) -> Pairs:
    """The pressed logits plus reservations choose, then the best reserved experts do; the logits weigh."""
    reservation = own["reservation"][int(is_vision)]
    ranking = gate.ranking(own["pressure"][int(is_vision)] * logits + reservation)
    ranked = [expert for expert in best(ranking, len(ranking)) if ranking[expert] > -np.inf]
    picks, others = ranked[: policy.top_k], ranked[policy.top_k :]
    picks += [expert for expert in others if reservation[expert] > 0][: policy.reserved_slots]
    return gate.weigh(picks, logits)


def steer(policy: Policy, gate: GateRule, logits: np.ndarray, is_vision: bool, _: Any) -> Pairs:
    """SteerMoE on the gate's log scores, ranked by the gate: "on" experts first, "off" experts last."""
    scores = gate.scores(logits)
    log_scores = steered(policy, np.log(scores), is_vision)
    changed = np.exp(log_scores)
    if gate.scoring == "softmax":
        changed /= changed.sum()
    ranking = log_scores if np.isscalar(gate.bias) and gate.groups is None else gate.ranked(changed)
    changes = (policy.all, policy.vision if is_vision else policy.text)
    on, off = ([expert for one in changes for expert in getattr(one, name)] for name in ("on", "off"))
    others = [expert for expert in best(ranking, len(ranking)) if expert not in on + off]
    picks = (sorted(on) + others)[: policy.top_k]
    total = changed[picks].sum() if gate.renormalises else changed.sum() / scores.sum()
    factors = gate.scale * np.broadcast_to(gate.expert_scale, scores.shape)
    return [(expert, float(changed[expert] / total * factors[expert])) for expert in picks]


RULES: dict[str, Callable[[Policy, GateRule, np.ndarray, bool, Any], Pairs]] = {
    rule.__name__: rule for rule in (topk, dual_threshold, ltdr, entropy, modality_groups, equiroute, steer)
}


def routed(policy: Policy, gate: GateRule, step: GateStep) -> list[Pairs]:
    """The experts of each token of a step."""
    return [
        RULES[policy.policy](policy, gate, logits, is_vision, step.parameters)
        for logits, is_vision in zip(step.logits.astype(np.float64), step.is_vision, strict=True)
    ]
