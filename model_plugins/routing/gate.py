"""A model's own gate, as policies see it: probabilities, a ranking, and the scale of its weights."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.routing import ranked_experts

SCORES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "softmax": (lambda logits: logits, lambda logits: torch.softmax(logits, dim=-1)),
    "sigmoid": (logsigmoid, torch.sigmoid),
    "sqrtsoftplus": (lambda logits: softplus(logits).log() / 2, lambda logits: softplus(logits).sqrt()),
}
"""The scoring functions by vLLM's names: the logarithm of the scores, and the scores."""


class Gate(NamedTuple):
    """The way in which a model's own router chooses and weighs experts.

    A gate computes a score from each logit. Its probabilities are the scores divided by their sum, for any
    scoring; RPV and entropy use them. The experts with the best scores, plus the bias, are chosen, from the
    best groups only. The weights are the scores without the bias, renormalised or not, and then scaled.
    """

    scoring: str | None
    """One of SCORES; None where the model has its own function."""
    renormalises: bool
    groups: tuple[int, int] | None
    """The number of groups of experts, and how many of them a token may use."""
    bias_E: Tensor | None
    scale: float
    expert_scale_E: Tensor | None = None
    """A factor for each expert's weight, applied last (Gemma-4)."""

    def __str__(self) -> str:
        if self.scoring is None:
            return "the model's own function"
        parts = [self.scoring]
        if self.bias_E is not None:
            parts.append("with a bias")
        if self.groups is not None:
            parts.append("in the best {1} of {0} groups".format(*self.groups))
        if self.renormalises:
            parts.append("renormalised")
        if self.scale != 1:
            parts.append(f"times {self.scale:g}")
        if self.expert_scale_E is not None:
            parts.append("times a scale of each expert's own")
        return ", ".join(parts)

    def most_experts(self, num_experts: int) -> int:
        """The most experts that a token can use."""
        return num_experts if self.groups is None else num_experts // self.groups[0] * self.groups[1]

    def confidence(self, logits_TE: Tensor) -> Confidence:
        """The gate's probabilities and ranking of the experts. Its scoring must be known."""
        assert self.scoring is not None
        logarithm, scores = SCORES[self.scoring]
        logits_TE = logits_TE.float()
        if self.bias_E is None and self.groups is None:
            return Confidence(logarithm(logits_TE))
        return Confidence(logarithm(logits_TE), self._ranking(scores(logits_TE)))

    def confidence_in(self, log_scores_TE: Tensor) -> Confidence:
        """The same from the scores' logarithm; with softmax, it may have a constant added for each token."""
        if self.bias_E is None and self.groups is None:
            return Confidence(log_scores_TE)
        is_softmax = self.scoring == "softmax"
        scores_TE = torch.softmax(log_scores_TE, dim=-1) if is_softmax else log_scores_TE.exp()
        return Confidence(log_scores_TE, self._ranking(scores_TE))

    def _ranking(self, scores_TE: Tensor) -> Tensor:
        """The scores with the bias, -inf outside the groups that a token may use."""
        if self.bias_E is not None:
            scores_TE = scores_TE + self.bias_E
        if self.groups is not None:
            scores_TE = self._of_best_groups(scores_TE, *self.groups)
        return scores_TE

    def _of_best_groups(self, scores_TE: Tensor, groups: int, used: int) -> Tensor:
        """The scores, -inf outside the groups that a token may use.

        As in DeepSeek-V3, a group's score is the sum of its two best experts if there is a bias, else its
        best.
        """
        scores_TGE = scores_TE.unflatten(1, (groups, -1))
        best_TG = scores_TGE.topk(1 if self.bias_E is None else 2, dim=-1).values.sum(dim=-1)
        used_TG, _ = ranked_experts(best_TG, used)
        is_out_TG = torch.ones_like(best_TG, dtype=torch.bool).scatter(1, used_TG, False)
        return scores_TGE.masked_fill(is_out_TG[:, :, None], -torch.inf).flatten(1)

    def scaled(self, weights_TA: Tensor, experts_TA: Tensor, logits_TE: Tensor, renormalised: bool) -> Tensor:
        """The factors of the experts' outputs, from the shares that a policy gives to the experts.

        `renormalised` says whether a token's shares sum to 1; if not, they are the probabilities.
        """
        if not renormalised and self.scoring not in (None, "softmax"):
            scores_TE = SCORES[self.scoring][1](logits_TE.float())
            weights_TA = weights_TA * scores_TE.sum(dim=-1, keepdim=True)
        if self.scale != 1:
            weights_TA = weights_TA * self.scale
        if self.expert_scale_E is not None:
            weights_TA = weights_TA * self.expert_scale_E.float()[experts_TA.long()]
        return weights_TA


SOFTMAX = Gate("softmax", renormalises=False, groups=None, bias_E=None, scale=1.0)
"""MoE-LLaVA's gate. A policy's setting says whether weights are renormalised."""
