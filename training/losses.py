"""Training losses for the routers of the literature. None of them acts when serving.

Shape legend: that of kernels/routing.py, plus L latent, K mixtures, M mixture components of an expert, P
(token, expert) pairs.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from prismoe.kernels.routing import TEXT, router_probabilities
from prismoe.training.model.moe_llava import LayerDecision


def balance_loss(routing: LayerDecision, is_counted_T: Tensor) -> Tensor:
    """The load-balance loss over the counted tokens: K · Σᵢ FᵢGᵢ, which is 1 for perfect balance.

    (LTDR, Eq. 8; IDA-MoE, Eqs. 9 to 11.) K is the number of experts that these tokens can choose. It excludes
    shared experts and those of other modalities.
    """
    share_E, mean_E = _load_and_probability(routing, is_counted_T)
    return (mean_E > 0).sum() * (share_E * mean_E).sum()


def text_balance_loss(routing: LayerDecision) -> Tensor:
    """The load-balance loss of text tokens: Σᵢ Fᵢ(𝒯) · Gᵢ(𝒯), without the factor K (LTDR, Eq. 10)."""
    share_E, mean_E = _load_and_probability(routing, routing.segment_T == TEXT)
    return (share_E * mean_E).sum()


def _load_and_probability(routing: LayerDecision, is_counted_T: Tensor) -> tuple[Tensor, Tensor]:
    """F and G: each expert's share of the counted tokens' choices, and its mean probability.

    They cover the experts that a router chooses from. F has no gradient.
    """
    counted_T1 = is_counted_T[:, None].float()
    chosen_TE = chosen_experts(routing)[:, : routing.probs_TE.shape[1]] * counted_T1
    share_E = chosen_TE.sum(0) / chosen_TE.sum().clamp(min=1)
    mean_E = (routing.probs_TE * counted_T1).sum(0) / counted_T1.sum().clamp(min=1)
    return share_E.detach(), mean_E


def chosen_experts(routing: LayerDecision) -> Tensor:
    """How often each token uses each expert, `[T, E]` in float32."""
    chosen_TE = torch.zeros(len(routing.experts_TA), routing.step.num_experts)
    return chosen_TE.scatter_add(1, routing.experts_TA, (routing.weights_TA > 0).float())


def utilisation_floor_loss(routing: LayerDecision, is_counted_T: Tensor, floor: float) -> Tensor:
    """A loss that keeps every expert in use: the mean over the experts of max(0, floor - K · Fᵢ)(1 - Gᵢ).

    It is 0 once every expert has the share `floor` of its fair share, 1 / K, of the choices. The critique of
    arXiv 2604.08134 asks that experts "maintain minimum utilization" for any modality; it has no formula.
    """
    share_E, mean_E = _load_and_probability(routing, is_counted_T)
    lack_E = (floor - len(share_E) * share_E).clamp(min=0)
    return (lack_E * (1 - mean_E)).mean()


def entropy_floor_loss(probs_TE: Tensor, is_counted_T: Tensor, floor: float) -> Tensor:
    """The bits by which routing entropy is below `floor`, as a mean over the counted tokens.

    The same critique asks that "routing entropy exceed a modality-independent threshold".
    """
    lack_T = (floor - _entropy(probs_TE) / math.log(2)).clamp(min=0)
    return (lack_T * is_counted_T).sum() / is_counted_T.sum().clamp(min=1)


def z_loss(logits_TE: Tensor) -> Tensor:
    """The mean square of log Σ exp of the router's logits, which keeps them small (ST-MoE, Eq. 5)."""
    return logits_TE.logsumexp(dim=-1).square().mean()


def conflict_loss(
    logits_TE: Tensor, experts_T: Tensor, gradients_TD: Tensor, threshold: float = 0.0
) -> Tensor:
    """A loss that moves conflicting tokens away from their experts `experts_T` (STGC, arXiv 2406.19905).

    A token conflicts if the cosine of its gradient and the mean gradient of its expert's tokens is below
    `threshold`. The available text only says that the routing scores of such tokens are lowered. The formula
    is inferred: the mean cross-entropy of their negated logits. Without such tokens the loss is 0.
    """
    gradients_TD = gradients_TD.detach()
    sum_ED = gradients_TD.new_zeros(logits_TE.shape[1], gradients_TD.shape[1])
    sum_ED = sum_ED.index_add(0, experts_T, gradients_TD)  # a sum has the same cosine as the mean
    conflicts_T = functional.cosine_similarity(gradients_TD, sum_ED[experts_T], dim=-1) < threshold
    loss_T = functional.cross_entropy(-logits_TE, experts_T, reduction="none")
    return (loss_T * conflicts_T).sum() / conflicts_T.sum().clamp(min=1)


def routed_conflict_loss(routing: LayerDecision, gradient_TD: Tensor) -> Tensor:
    """The `conflict_loss` of all pairs of a token and an expert that it chose.

    `gradient_TD` is the gradient of the answers' loss with respect to the layer's output. Multiplied by the
    expert's weight it is the token's gradient with respect to the bias of the expert's last map, which is
    used in place of the gradient of all the expert's parameters.
    """
    assert routing.logits_TE is not None
    is_chosen_TA = (routing.weights_TA > 0) & (routing.experts_TA < routing.logits_TE.shape[1])
    token_P, slot_P = is_chosen_TA.nonzero(as_tuple=True)
    weight_P1 = routing.weights_TA[token_P, slot_P, None]
    return conflict_loss(
        routing.logits_TE[token_P], routing.experts_TA[token_P, slot_P], weight_P1 * gradient_TD[token_P]
    )


def modality_contrast(logits_TE: Tensor, segment_T: Tensor) -> Tensor:
    """EquiRoute's Modality-Contrastive Routing: 0 if modalities share no expert, 1 if they route alike.

    Only the abstract is available: it "encourages distinct modality-level routing distributions while
    retaining a shared expert pool". The formula is inferred: 1 minus the Jensen–Shannon divergence, in bits,
    of the modalities' mean routing probabilities. For a batch with one modality it is 1, without a gradient.
    """
    probs_TE = router_probabilities(logits_TE)
    weights_2T = torch.stack([segment_T == TEXT, segment_T >= 0]).float()
    has_both = weights_2T.any(dim=1).all()
    weights_2T = torch.where(has_both, weights_2T, weights_2T.sum(dim=0))
    mean_2E = weights_2T @ probs_TE / weights_2T.sum(dim=1, keepdim=True)
    divergence = _entropy(mean_2E.mean(dim=0)) - _entropy(mean_2E).mean()
    return 1 - divergence / math.log(2)


def _entropy(probs_XE: Tensor) -> Tensor:
    """The entropy of each row in nats, with a finite gradient at probability 0."""
    return -(probs_XE * probs_XE.clamp(min=torch.finfo(probs_XE.dtype).tiny).log()).sum(dim=-1)


def diversity_loss(embeddings_ED: Tensor) -> Tensor:
    """Keeps experts' embeddings different and short: ‖WᵀW − I‖ + the mean ‖w_e‖ (DynMoE, Eqs. 7 and 8)."""
    gram_EE = embeddings_ED @ embeddings_ED.T
    apart = (gram_EE - torch.eye(len(gram_EE), dtype=gram_EE.dtype)).norm()
    return apart + embeddings_ED.norm(dim=1).mean()


def log_mixing_weights(log_mixing_KEM: Tensor) -> Tensor:
    """log π, scaled so that a mixture's π sum to 1 (IDA-MoE, Eq. 14).

    Without the scaling, Eq. 15 has no minimum, because all π would grow.
    """
    return log_mixing_KEM - log_mixing_KEM.logsumexp(dim=(-2, -1), keepdim=True)


def reconstruction_loss(hidden_TD: Tensor, reconstructed_TD: Tensor) -> Tensor:
    """The autoencoder's squared error as a mean over the tokens (IDA-MoE, Eq. 13).

    The hidden states get no gradient.
    """
    return (hidden_TD.detach() - reconstructed_TD).square().sum(dim=-1).mean()


def mixture_loss(log_joint_TKEM: Tensor) -> Tensor:
    """The tokens' mean negative log-likelihood, summed over the K mixtures (IDA-MoE, Eqs. 15 and 24).

    `log_joint_TKEM` is `prismoe.kernels.mixture.log_joint` of latents without a gradient. The paper sums over
    the tokens; a mean does not depend on the batch size.
    """
    return -log_joint_TKEM.logsumexp(dim=(-2, -1)).mean(dim=0).sum()


def reactivation_loss(log_joint_TKEM: Tensor, slow_KEM: Tensor) -> Tensor:
    """The `mixture_loss` of the slow components only, which pulls them to the tokens (IDA-MoE, Eq. 23).

    A mixture without slow components adds nothing.
    """
    log_joint_TKEM = log_joint_TKEM.masked_fill(~slow_KEM, -torch.inf)
    has_slow_K = slow_KEM.any(dim=-1).any(dim=-1)
    likelihood_TK = log_joint_TKEM[:, has_slow_K].logsumexp(dim=(-2, -1))
    return -likelihood_TK.mean(dim=0).sum()
