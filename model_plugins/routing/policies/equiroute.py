"""`equiroute`: equal access to experts for the minority modality (EquiRoute, osf.io/hfvbc)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.fused_rule import FusedRule
from prismoe.kernels.routing import by_modality, ranked_experts, top_experts, weighed_by_count
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, TopKPolicy


class EquiRoute(TopKPolicy):
    """Top-k by logits with pressure and reservations; then reserved experts, by the router's probabilities.

    Only the paper's abstract is at hand: Cross-Modality Expert Reservation "introduces soft capacity
    targets", Entropy-Guided Token Budgeting "uses modality-level routing entropy to modulate dispatch
    pressure". Inferred from it: a reservation is a number that a modality adds to an expert's logit, and a
    pressure is a factor of a modality's logits, against its reservations. In the paper both follow from the
    batch; here they are frozen in the checkpoint, so that a request is routed the same whatever other
    requests run. Row 0 is for text, row 1 for vision.

    An expert is reserved for a modality that adds to its logit. With `reserved_slots` a token also uses the
    best experts reserved for its modality that are not among its k: at top-1, n tokens reach at most n
    experts, fewer than the paper reports. Where a gate has groups, they come from the token's groups.
    """

    policy: Literal["equiroute"] = "equiroute"
    takes_any_gate: ClassVar[bool] = True
    reserved_slots: int = Field(default=0, ge=0)

    def slots(self, num_experts: int) -> int:
        slots = super().slots(num_experts) + self.reserved_slots
        if slots > num_experts:
            raise ValueError(
                f"top_k {self.top_k} and reserved_slots {self.reserved_slots} are more than the layer's "
                f"{num_experts} experts: lower one of them."
            )
        return slots

    @property
    def uses_all_slots(self) -> bool:
        return self.reserved_slots == 0

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        return {"pressure": (2, 1), "reservation": (2, num_experts)}

    def route(self, step: RouterInputs) -> Routing:
        confidence, ranking_TE = self._ranked(step)
        if self.reserved_slots:
            return self._with_reserved(step, confidence, ranking_TE)
        chosen = top_experts(confidence.logits_TE, self.top_k, self.norm_topk_prob, ranking_TE)
        return Routing.of_equal_counts(*chosen, confidence)

    def fused_rule(self, step: RouterInputs) -> FusedRule | None:
        if self.reserved_slots:  # the kernel fills all slots by one ranking
            return None
        return self.top_k_rule(*self._ranked(step))

    def _with_reserved(self, step: RouterInputs, confidence: Confidence, ranking_TE: Tensor) -> Routing:
        experts_TK, _ = ranked_experts(ranking_TE, self.top_k)
        is_reserved_TE = by_modality(step.is_vision_T, step.parameters["reservation"]) > 0
        is_left_TE = (is_reserved_TE & (ranking_TE > -torch.inf)).scatter(1, experts_TK, False)
        left_TE = ranking_TE.masked_fill(~is_left_TE, -torch.inf)
        reserved_TR, _ = ranked_experts(left_TE, self.reserved_slots)
        num_reserved_T = is_left_TE.sum(dim=-1).clamp(max=self.reserved_slots)
        experts_TA, count_T = torch.cat([experts_TK, reserved_TR], dim=1), self.top_k + num_reserved_T
        logits_TA = confidence.logits_TE.gather(1, experts_TA)
        experts_TA, weights_TA = weighed_by_count(
            confidence.logits_TE, experts_TA, logits_TA, count_T, self.norm_topk_prob
        )
        scores_TE = _above_last(confidence, experts_TK, reserved_TR, num_reserved_T, is_left_TE)
        scored = Confidence(confidence.logits_TE, scores_TE)
        return Routing.without_tail(experts_TA, weights_TA, count_T, scored)

    def _ranked(self, step: RouterInputs) -> tuple[Confidence, Tensor]:
        """The confidence, and the gate's ranking by the logits with pressure and reservations."""
        pressure_T1 = by_modality(step.is_vision_T, step.parameters["pressure"])
        reservation_TE = by_modality(step.is_vision_T, step.parameters["reservation"])
        pressed = step.gate.confidence(pressure_T1 * step.logits_TE.float() + reservation_TE)
        logits_TE = step.confidence.logits_TE
        if pressed.scores_TE is None:
            return Confidence(logits_TE, pressed.probs_TE), pressed.logits_TE
        return Confidence(logits_TE, pressed.scores_TE), pressed.scores_TE


def _above_last(
    confidence: Confidence,
    experts_TK: Tensor,
    reserved_TR: Tensor,
    num_reserved_T: Tensor,
    is_left_TE: Tensor,
) -> Tensor:
    """The lead of each expert's score over the last winner's for the same kind of slot, `[T, E]`.

    Used experts have 0 or more, others 0 or less, so that a near tie for either kind of slot counts.
    """
    assert confidence.scores_TE is not None
    last_T1 = (num_reserved_T - 1).clamp(min=0)[:, None]
    last_k_T1 = confidence.scores_TE.gather(1, experts_TK[:, -1:])
    last_reserved_T1 = confidence.scores_TE.gather(1, reserved_TR.gather(1, last_T1))
    return confidence.scores_TE - torch.where(is_left_TE, last_reserved_T1, last_k_T1)
