"""Fits reservations and pressure for `equiroute` (EquiRoute, osf.io/hfvbc) to the load by modality."""

import torch
from torch import Tensor

from prismoe.kernels.routing import ranked_experts, router_probabilities, routing_entropy
from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData, TokenSample
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, RouterFit

STEPS, RATE = 400, 0.2


def fit(data: CalibrationData, goal: Goal) -> RouterFit:
    """Fit the pressures and reservations. Both rules are inferred: the paper's abstract has no formulas.

    Entropy-Guided Token Budgeting: a modality's entropy is that of its mean routing probabilities; its
    pressure is that entropy divided by the larger of the two, so that the logits of the modality that
    concentrates on fewer experts count for less. Cross-Modality Expert Reservation: the target is an equal
    share of the modality's uses for each expert. The minority modality, which has fewer tokens, gets the
    reservations that come closest to it. The majority gets none.
    """
    top_k = goal.settings.get("top_k", data.top_k)
    return RouterFit(
        {"policy": "equiroute", **goal.settings},
        tensors={layer: _tensors(sample, top_k) for layer, sample in data.samples().items()},
    )


def _tensors(sample: TokenSample, top_k: int) -> dict[str, Tensor]:
    is_vision_T = sample.segment_N >= 0
    of_modality = [~is_vision_T, is_vision_T]
    probs_2E = torch.stack(
        [router_probabilities(sample.logits_NE[chosen_T]).mean(dim=0) for chosen_T in of_modality]
    )
    entropy_2 = routing_entropy(probs_2E)
    pressure_21 = (entropy_2 / entropy_2.max())[:, None]
    minority = int(is_vision_T.sum() * 2 < len(is_vision_T))
    reservation_2E = torch.zeros_like(probs_2E)
    pressed_TE = pressure_21[minority] * sample.logits_NE[of_modality[minority]]
    reservation_2E[minority] = reservations(pressed_TE, top_k)
    return {"pressure": pressure_21, "reservation": reservation_2E}


def reservations(logits_TE: Tensor, top_k: int) -> Tensor:
    """The numbers to add to the logits so that top-k loads the experts equally, `[E]`; their mean is 0.

    Experts above the mean load are lowered and those below it raised, in shrinking steps relative to the
    logits' spread. The best of all steps is returned, since the load of few tokens may never be fully even.
    """
    num_experts = logits_TE.shape[1]
    reservation_E = torch.zeros(num_experts)
    best_E, best_excess = reservation_E, float("inf")
    spread = logits_TE.std().clamp(min=1e-6)
    for step in range(STEPS):
        experts_TA, _ = ranked_experts(logits_TE + reservation_E, top_k)
        load_E = torch.bincount(experts_TA.flatten(), minlength=num_experts) / experts_TA.numel()
        excess_E = load_E * num_experts - 1
        if excess_E.abs().max() < best_excess:
            best_E, best_excess = reservation_E, excess_E.abs().max().item()
        reservation_E = reservation_E - RATE * spread * excess_E / (1 + step / 20)
        reservation_E = reservation_E - reservation_E.mean()
    return best_E
