"""`equiroute`: equal access to experts for the minority modality (EquiRoute, osf.io/hfvbc)."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from prismoe.kernels.expert_load import Confidence
from prismoe.kernels.fused_rule import FusedRule
from prismoe.kernels.routing import by_modality, picked_experts, router_probabilities
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

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        return {"pressure": (2, 1), "reservation": (2, num_experts)}

    def scores(self, step: RouterInputs) -> Tensor:
        """What ranks the experts, `[T, E]`."""
        pressure_T1 = by_modality(step.is_vision_T, step.parameters["pressure"])
        reservation_TE = by_modality(step.is_vision_T, step.parameters["reservation"])
        return pressure_T1 * step.logits_TE + reservation_TE

    def route(self, step: RouterInputs) -> Routing:
        scores_TE = self.scores(step)
        probs_TE = router_probabilities(step.logits_TE)
        picked = picked_experts(scores_TE, probs_TE, self.top_k, self.norm_topk_prob)
        return Routing.of_equal_counts(*picked, Confidence(step.logits_TE, router_probabilities(scores_TE)))

    def fused_rule(self, step: RouterInputs) -> FusedRule:
        scores_TE = self.scores(step)
        return self.top_k_rule(Confidence(step.logits_TE, router_probabilities(scores_TE)), scores_TE)
