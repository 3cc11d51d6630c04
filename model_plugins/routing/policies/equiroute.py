"""`equiroute`: equal access to experts for the minority modality (EquiRoute, osf.io/hfvbc)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.fused_rule import FusedRule
from prismoe.kernels.routing import by_modality, top_experts
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, TopKPolicy


class EquiRoute(TopKPolicy):
    """Top-k by pressed logits and reservations, weighed by the router's own probabilities.

    Of the paper the abstract is at hand: Cross-Modality Expert Reservation "introduces soft capacity
    targets", Entropy-Guided Token Budgeting "uses modality-level routing entropy to modulate dispatch
    pressure". Inferred from it: a reservation is a number that a modality adds to an expert's logit, and a
    pressure one that scales a modality's logits against its reservations. In the paper both follow from the
    batch; here they are frozen in the checkpoint, so that a request routes alike in any company. Row 0 is
    text's, row 1 vision's.
    """

    policy: Literal["equiroute"] = "equiroute"
    takes_any_gate: ClassVar[bool] = True

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        return {"pressure": (2, 1), "reservation": (2, num_experts)}

    def route(self, step: RouterInputs) -> Routing:
        confidence, ranking_TE = self._ranked(step)
        chosen = top_experts(confidence.logits_TE, self.top_k, self.norm_topk_prob, ranking_TE)
        return Routing.of_equal_counts(*chosen, confidence)

    def fused_rule(self, step: RouterInputs) -> FusedRule:
        return self.top_k_rule(*self._ranked(step))

    def _ranked(self, step: RouterInputs) -> tuple[Confidence, Tensor]:
        """The confidence, and what ranks the experts: as the gate would rank them by the pressed logits."""
        pressure_T1 = by_modality(step.is_vision_T, step.parameters["pressure"])
        reservation_TE = by_modality(step.is_vision_T, step.parameters["reservation"])
        pressed = step.gate.confidence(pressure_T1 * step.logits_TE.float() + reservation_TE)
        logits_TE = step.confidence.logits_TE
        if pressed.scores_TE is None:
            return Confidence(logits_TE, pressed.probs_TE), pressed.logits_TE
        return Confidence(logits_TE, pressed.scores_TE), pressed.scores_TE
