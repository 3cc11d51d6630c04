"""Each policy's rule for one token at a time, in float64: the reference for the fast forms.

A rule gets a policy's settings and a step, and returns the (expert, weight) pairs of each token.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.kernels import reference

Pairs = list[tuple[int, float]]
Policy = Any  # each rule reads its own policy's settings


@dataclass
class Step:
    """A step in float64.

    `logits` may have fewer columns than there are experts. `segments` and `requests` are the index of each
    token's image (negative if it has none) and request. `tasks` and `instructions` are the label of each
    token's request, and the mean embedding of its text.
    """

    hidden: np.ndarray
    logits: np.ndarray
    segments: list[int]
    requests: list[int]
    asked: np.ndarray
    parameters: Mapping[str, np.ndarray]
    num_experts: int
    tasks: list[int]
    instructions: np.ndarray


def best(scores: np.ndarray, count: int) -> list[int]:
    """The `count` experts with the highest scores; ties take the lower index."""
    return sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))[:count]


def weighed(experts: list[int], weights: np.ndarray, renormalize: bool) -> Pairs:
    total = sum(weights[expert] for expert in experts) if renormalize else 1.0
    return [(expert, float(weights[expert] / total)) for expert in experts]


def softmax(logits: np.ndarray) -> np.ndarray:
    return reference.probabilities(logits[None])[0]


def cosine_similarity(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def topk(policy: Policy, step: Step) -> list[Pairs]:
    """LTDR, Eqs. 6 and 7."""
    return [
        weighed(best(softmax(row), policy.top_k), softmax(row), policy.norm_topk_prob) for row in step.logits
    ]


def ltdr_tail(policy: Policy, step: Step) -> list[bool]:
    """LTDR, Eqs. 9 and 11, for an image or all images of a request, or with a fixed threshold."""
    probs = reference.probabilities(step.logits)
    if policy.mean_over == "request":
        compared = [
            request if segment >= 0 else segment
            for segment, request in zip(step.segments, step.requests, strict=True)
        ]
        return reference.tail(probs, compared)
    if policy.threshold is None:
        return reference.tail(probs, step.segments)
    return [
        segment >= 0 and np.mean((row - row.mean()) ** 2) > policy.threshold
        for row, segment in zip(probs, step.segments, strict=True)
    ]


def ltdr(policy: Policy, step: Step) -> list[Pairs]:
    """LTDR, Eq. 12, with numbers for each kind of token. The request's numbers override the policy's."""
    head, text = policy.head_experts or policy.top_k, policy.text_experts or policy.top_k
    tail = policy.tail_experts or step.num_experts
    most = max(tail, head, text, policy.request_experts or 0)
    tokens = []
    for row, segment, is_tail, asked in zip(
        step.logits, step.segments, ltdr_tail(policy, step), step.asked, strict=True
    ):
        selected = segment >= 0 and is_tail == (policy.selection == "tail")
        count = tail if selected else head if segment >= 0 else text
        wish = int(asked[0] if selected else asked[1])
        count = min(wish, most) if wish else count
        tokens.append(weighed(best(softmax(row), count), softmax(row), policy.norm_topk_prob))
    return tokens


def gmm(policy: Policy, step: Step) -> list[Pairs]:
    """IDA-MoE, Eqs. 12 and 16 to 19."""
    own = step.parameters
    tokens = []
    for hidden in step.hidden:
        latent = own["encoder"] @ hidden + own["encoder_bias"]
        picks: list[tuple[int, float]] = []
        for rank in range(policy.top_k):
            means, log_variances = own["means"][rank], own["log_variances"][rank]
            squares = (latent - means) ** 2 / np.exp(log_variances) + log_variances + math.log(2 * math.pi)
            joint = own["log_mixing"][rank] - 0.5 * squares.sum(axis=-1)
            posteriors = np.exp(joint - joint.max())
            posteriors /= posteriors.sum()
            (expert,) = best(joint.max(axis=1), 1)
            picks.append((expert, float(posteriors[expert].max())))
        weights = softmax(np.array([posterior for _, posterior in picks]))
        tokens.append([(expert, float(w)) for (expert, _), w in zip(picks, weights, strict=True)])
    return tokens


def modality_conditioned(policy: Policy, step: Step) -> list[Pairs]:
    """W(x + e_m), W[x; e_m], W_m x + b_m or Wx + b_m."""
    own = step.parameters
    tokens = []
    for hidden, logits, segment in zip(step.hidden, step.logits, step.segments, strict=True):
        modality = int(segment >= 0)
        if policy.form == "add":
            logits = own["weight"] @ (hidden + own["modality_embedding"][modality])
        elif policy.form == "concat":
            logits = own["weight"] @ np.concatenate([hidden, own["modality_embedding"][modality]])
        elif policy.form == "gate":
            logits = own["modality_weight"][modality] @ hidden + own["modality_bias"][modality]
        else:
            logits = logits + own["modality_bias"][modality]
        probs = softmax(logits)
        tokens.append(weighed(best(probs, policy.top_k), probs, policy.norm_topk_prob))
    return tokens


def modality_groups(policy: Policy, step: Step) -> list[Pairs]:
    """LTDR, App. B.1: a softmax within the modality's group, and shared experts."""
    routed = step.num_experts - policy.shared_experts
    vision = policy.vision_group or routed // 2
    tokens = []
    for row, segment in zip(step.logits, step.segments, strict=True):
        first, last = (0, vision) if segment >= 0 else (vision, routed)
        count = policy.vision_experts if segment >= 0 else policy.text_experts
        probs = softmax(row[first:last])
        pairs = weighed(best(probs, count), probs, policy.norm_topk_prob)
        shared = [(expert, 1.0) for expert in range(routed, step.num_experts)]
        tokens.append(shared + [(first + expert, weight) for expert, weight in pairs])
    return tokens


def equiroute(policy: Policy, step: Step) -> list[Pairs]:
    """Pressed logits plus reservations pick, then the best reserved ones; the probabilities weigh."""
    tokens = []
    for row, segment in zip(step.logits, step.segments, strict=True):
        modality = int(segment >= 0)
        pressure, reservation = (step.parameters[name][modality] for name in ("pressure", "reservation"))
        ranked = best(pressure * row + reservation, step.num_experts)
        picks, others = ranked[: policy.top_k], ranked[policy.top_k :]
        picks += [expert for expert in others if reservation[expert] > 0][: policy.reserved_slots]
        tokens.append(weighed(picks, softmax(row), policy.norm_topk_prob))
    return tokens


def top_any(policy: Policy, step: Step) -> list[Pairs]:
    """DynMoE, Eqs. 2 to 6, with the paper's comparison of sigmoids."""
    tokens = []
    for hidden in step.hidden:
        scores = np.array([cosine_similarity(hidden, own) for own in step.parameters["expert_embeddings"]])
        passes = 1 / (1 + np.exp(-scores)) > 1 / (1 + np.exp(-step.parameters["thresholds"]))
        picks = [expert for expert in best(scores, step.num_experts) if passes[expert]] or best(scores, 1)
        tokens.append([(expert, 1 / len(picks)) for expert in picks])
    return tokens


def cosine(policy: Policy, step: Step) -> list[Pairs]:
    """X-MoE: similarity on a low-dimensional sphere, and a temperature."""
    own = step.parameters
    tokens = []
    for hidden in step.hidden:
        scores = np.array(
            [cosine_similarity(own["projection"] @ hidden, e) for e in own["expert_embeddings"]]
        )
        probs = softmax(scores / own["temperature"][0])
        tokens.append(weighed(best(probs, policy.top_k), probs, policy.norm_topk_prob))
    return tokens


def bias_corrected(policy: Policy, step: Step) -> list[Pairs]:
    """AuxFree-MoE: the biased score chooses, and the score weighs."""
    tokens = []
    for row in step.logits:
        scores = softmax(row) if policy.score == "softmax" else 1 / (1 + np.exp(-row))
        picks = best(scores + step.parameters["expert_bias"], policy.top_k)
        tokens.append(weighed(picks, scores, policy.norm_topk_prob))
    return tokens


def fine_grained(policy: Policy, step: Step) -> list[Pairs]:
    """DeepSeekMoE, Eqs. 9 to 11."""
    shared = [(expert, 1.0) for expert in range(step.num_experts - policy.shared_experts, step.num_experts)]
    return [shared + pairs for pairs in topk(policy, step)]


def dual_threshold(policy: Policy, step: Step) -> list[Pairs]:
    """MoDES: an expert is skipped if α w is below the modality's threshold; the others keep their weights.

    The best expert is kept if that is set.
    """
    tokens = []
    for row, segment in zip(step.logits, step.segments, strict=True):
        probs = softmax(row)
        pairs = weighed(best(probs, policy.top_k), probs, policy.norm_topk_prob)
        modality = "vision" if segment >= 0 else "text"
        importance = getattr(policy, f"{modality}_importance")
        threshold = getattr(policy, f"{modality}_threshold")
        kept = [pair for pair in pairs if importance * pair[1] >= threshold]
        tokens.append(kept or pairs[: int(policy.keep_best)])
    return tokens


def entropy(policy: Policy, step: Step) -> list[Pairs]:
    """GeMoE as it is understood here: equal parts of the entropy between two bounds."""
    most = policy.max_experts or step.num_experts
    tokens = []
    for row in step.logits:
        probs = softmax(row)
        uncertainty = -sum(p * math.log(p) for p in probs if p > 0) / math.log(step.num_experts)
        part = (uncertainty - policy.low) / (policy.high - policy.low) * (most - policy.min_experts + 1)
        count = min(max(policy.min_experts + math.floor(part), policy.min_experts), most)
        tokens.append(weighed(best(probs, count), probs, policy.norm_topk_prob))
    return tokens


def steered(policy: Policy, log_scores: np.ndarray, is_vision: bool) -> np.ndarray:
    """SteerMoE: on is the largest log score plus 0.01, off the smallest minus 0.01; shifts come first."""
    changes = (policy.all, policy.vision if is_vision else policy.text)
    shifted = log_scores.copy()
    for change in changes:
        for expert, shift in change.shift.items():
            shifted[expert] += shift
    replaced = shifted.copy()
    for change in changes:
        replaced[list(change.on)] = shifted.max() + 0.01
        replaced[list(change.off)] = shifted.min() - 0.01
    return replaced


def steer(policy: Policy, step: Step) -> list[Pairs]:
    """SteerMoE by modality: the k most probable experts of the replaced log-softmax."""
    tokens = []
    for row, segment in zip(step.logits, step.segments, strict=True):
        log_scores = steered(policy, np.log(softmax(row)), segment >= 0)
        picks = best(log_scores, policy.top_k)
        tokens.append(weighed(picks, softmax(log_scores), policy.norm_topk_prob))
    return tokens


def task(policy: Policy, step: Step) -> list[Pairs]:
    """LTDR, App. A.3, TASK: by the request's label, or the default if it is not a task's."""
    tokens = []
    for given in step.tasks:
        label = given if 0 <= given < policy.tasks else policy.default_task
        if policy.experts is not None:
            tokens.append([(policy.experts[label], 1.0)])
            continue
        probs = softmax(step.parameters["task_logits"][label])
        tokens.append(weighed(best(probs, policy.top_k), probs, policy.norm_topk_prob))
    return tokens


def cluster(policy: Policy, step: Step) -> list[Pairs]:
    """LTDR, App. A.3, CLUSTER: the gate sees the embedding of the nearest centroid."""
    own = step.parameters
    tokens = []
    for instruction in step.instructions:
        nearest = int(np.argmin(((own["centroids"] - instruction) ** 2).sum(axis=1)))
        probs = softmax(own["weight"] @ own["cluster_embeddings"][nearest])
        tokens.append(weighed(best(probs, policy.top_k), probs, policy.norm_topk_prob))
    return tokens


def instruction(policy: Policy, step: Step) -> list[Pairs]:
    """LTDR, App. A.3, INSTRUCT: the gate sees the mean of the instruction's tokens."""
    tokens = []
    for mean in step.instructions:
        probs = softmax(step.parameters["weight"] @ mean)
        tokens.append(weighed(best(probs, policy.top_k), probs, policy.norm_topk_prob))
    return tokens


RULES: dict[str, Callable[[Policy, Step], list[Pairs]]] = {
    rule.__name__: rule
    for rule in (
        topk,
        ltdr,
        gmm,
        modality_conditioned,
        modality_groups,
        equiroute,
        top_any,
        cosine,
        bias_corrected,
        fine_grained,
        dual_threshold,
        entropy,
        steer,
        task,
        cluster,
        instruction,
    )
}
