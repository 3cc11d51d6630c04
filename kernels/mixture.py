"""Gaussian mixtures over a latent space, in log space (IDA-MoE, Eqs. 14, 16 and 17).

Shape legend: T tokens, L latent, E experts, M mixture components of an expert, K mixtures.
"""

import math

import torch
from torch import Tensor


def log_joint(
    latent_TL: Tensor, log_mixing_KEM: Tensor, means_KEML: Tensor, log_variances_KEML: Tensor
) -> Tensor:
    """log(π N(z; μ, Σ)) of every component with diagonal Σ, `[T, K, E, M]` in float64.

    The squares are expanded so that one matrix product serves all components. float64 keeps the digits that
    cancel between the large squares.
    """
    precisions_KEML = torch.exp(-log_variances_KEML.double())
    means_KEML = means_KEML.double()
    latent_TL = latent_TL.double()
    linear_KEML = means_KEML * precisions_KEML
    constant_KEM = (
        log_mixing_KEM.double()
        - 0.5 * (means_KEML * linear_KEML + log_variances_KEML.double()).sum(dim=-1)
        - 0.5 * means_KEML.shape[-1] * math.log(2 * math.pi)
    )
    terms_T2L = torch.cat([latent_TL, -0.5 * latent_TL * latent_TL], dim=-1)
    factors = torch.cat([linear_KEML, precisions_KEML], dim=-1).flatten(end_dim=-2)
    return (terms_T2L @ factors.T).unflatten(-1, log_mixing_KEM.shape) + constant_KEM


def best_posteriors(log_joint_TKEM: Tensor) -> tuple[Tensor, Tensor]:
    """The expert of each mixture's most probable component and that component's posterior, both `[T, K]`.

    A posterior is relative to all components of its mixture (Eqs. 16 to 18); equal ones take the lower
    expert.
    """
    best_TKE = log_joint_TKEM.amax(dim=-1)
    best_TK, experts_TK = best_TKE.max(dim=-1)
    return experts_TK, torch.exp(best_TK - log_joint_TKEM.logsumexp(dim=(-2, -1)))


def expert_posteriors(log_joint_TKEM: Tensor) -> Tensor:
    """The posterior of every expert in each mixture, summed over its components, `[T, K, E]`."""
    return (
        torch.softmax(log_joint_TKEM.flatten(start_dim=-2), dim=-1)
        .unflatten(-1, log_joint_TKEM.shape[-2:])
        .sum(dim=-1)
    )
