"""A mixture of diagonal Gaussians, with some components for each expert (IDA-MoE, Eqs. 14, 15, 21 to 23).

Shape legend: N tokens, L latent, E experts, M mixture components of an expert, C clusters.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from prismoe.kernels.mixture import log_joint

STEPS = 60
REACTIVATION_STEPS = 40
"""The number of steps that reactivate slow components; the remaining steps settle without it."""
LLOYD_STEPS = 10
VARIANCE_FLOOR = 1e-2
"""The least variance, for latents with unit variance; without it, a component of few tokens would be a
spike."""


class Mixture(NamedTuple):
    """The parameters of one of a router's k mixtures, in float64."""

    log_mixing_EM: Tensor
    means_EML: Tensor
    log_variances_EML: Tensor

    def log_joint(self, latent_NL: Tensor) -> Tensor:
        """log(π N(z; μ, Σ)) of every component, `[N, E, M]`."""
        return log_joint(latent_NL, *(parameter[None] for parameter in self))[:, 0]


def fit_mixture(
    latent_NL: Tensor,
    expert_N: Tensor,
    num_experts: int,
    components: int,
    draw: torch.Generator,
    on_step: Callable[[Mixture], object],
    reactivation_steps: int = REACTIVATION_STEPS,
) -> Mixture:
    """Fit a mixture, and call `on_step` with the mixture after each step.

    Eq. 15 is minimised by expectation maximisation instead of gradient descent, over tokens and their
    experts: only the components of its own expert explain a token, so each component comes to represent its
    expert. Reactivation (Eqs. 22 and 23) adds, for the components drawn as slow, the posteriors among those
    components only; weighting tokens by these is the same as following Eq. 23's gradient (Eq. 21) to its
    zero.
    """
    own_NE = one_hot(expert_N, num_experts).bool()
    mixture = _start(latent_NL, own_NE, components, draw)
    for step in range(STEPS):
        log_joint_NEM = mixture.log_joint(latent_NL).masked_fill(~own_NE[:, :, None], -torch.inf)
        posterior_NEM = _softmax(log_joint_NEM)
        if step < reactivation_steps:
            slow_EM = slow_components(mixture.log_mixing_EM[None], draw)[0]
            posterior_NEM = posterior_NEM + _softmax(log_joint_NEM.masked_fill(~slow_EM, -torch.inf))
        mixture = _maximise(latent_NL, posterior_NEM)
        on_step(mixture)
    return mixture


def _softmax(log_joint_NEM: Tensor) -> Tensor:
    """Posteriors over all of a token's components; zero for a token without components."""
    flat_NC = log_joint_NEM.flatten(start_dim=1)
    return torch.softmax(flat_NC, dim=-1).nan_to_num(0).view_as(log_joint_NEM)


def _maximise(latent_NL: Tensor, posterior_NEM: Tensor) -> Mixture:
    """The parameters of maximum likelihood for tokens that belong to components by these posteriors."""
    flat_NC = posterior_NEM.flatten(start_dim=1)
    weight_C = flat_NC.sum(dim=0).clamp(min=1e-6)
    means_CL = flat_NC.T @ latent_NL / weight_C[:, None]
    squares_CL = flat_NC.T @ latent_NL**2 / weight_C[:, None]
    variances_CL = (squares_CL - means_CL**2).clamp(min=VARIANCE_FLOOR)
    shape = posterior_NEM.shape[1:]
    return Mixture(
        (weight_C / weight_C.sum()).log().view(shape),
        means_CL.view(*shape, -1),
        variances_CL.log().view(*shape, -1),
    )


def _start(latent_NL: Tensor, own_NE: Tensor, components: int, draw: torch.Generator) -> Mixture:
    """A mixture of each expert's clustered tokens; an expert with too few tokens borrows others."""
    posterior_NEM = latent_NL.new_zeros(*own_NE.shape, components)
    for expert, own_N in enumerate(own_NE.T):
        tokens = own_N.nonzero().squeeze(1)
        if len(tokens) < components:
            others = torch.randperm(len(latent_NL), generator=draw)[: components - len(tokens)]
            tokens = torch.cat([tokens, others])
        posterior_NEM[tokens, expert, k_means(latent_NL[tokens], components, draw)] = 1
    return _maximise(latent_NL, posterior_NEM)


def k_means(points_NL: Tensor, clusters: int, draw: torch.Generator) -> Tensor:
    """Each point's cluster, `[N]`."""
    return torch.cdist(points_NL, k_means_centres(points_NL, clusters, draw)).argmin(dim=1)


def k_means_centres(points_NL: Tensor, clusters: int, draw: torch.Generator) -> Tensor:
    """The centres, `[C, L]`, by Lloyd's steps from k-means++ seeds (Arthur & Vassilvitskii 2007)."""
    centres_CL = points_NL[torch.randint(len(points_NL), (1,), generator=draw)]
    for _ in range(clusters - 1):
        distance_N = torch.cdist(points_NL, centres_CL).amin(dim=1) ** 2 + 1e-12
        next_point = torch.multinomial(distance_N, 1, generator=draw)
        centres_CL = torch.cat([centres_CL, points_NL[next_point]])
    for _ in range(LLOYD_STEPS):
        cluster_N = torch.cdist(points_NL, centres_CL).argmin(dim=1)
        is_in_NC = one_hot(cluster_N, clusters).to(points_NL)
        size_C1 = is_in_NC.sum(dim=0)[:, None]
        centres_CL = torch.where(size_C1 > 0, is_in_NC.T @ points_NL / size_C1.clamp(min=1), centres_CL)
    return centres_CL


def slow_components(log_mixing_KEM: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw components to reactivate, boolean: rarer components are more likely (IDA-MoE, Eq. 22).

    `log_mixing_KEM` are log π, which sum to 1 over a mixture's E × M components.
    """
    components = log_mixing_KEM.shape[1] * log_mixing_KEM.shape[2]
    return torch.bernoulli((1 - components * log_mixing_KEM.exp()).clamp(0, 1), generator=generator).bool()
