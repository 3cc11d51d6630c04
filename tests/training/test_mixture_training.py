"""IDA-MoE's mixtures in training: the learning of their weights, and their start."""

import pytest
import torch
from torch import Tensor

from prismoe.kernels.balance import variation
from prismoe.kernels.mixture import best_posteriors
from prismoe.model_plugins.tools.calibrate.fits.mixture import Mixture, fit_mixture, k_means
from prismoe.training.router_rules import mixtures_loss, start_mixture

EXPERTS, COMPONENTS = 4, 4


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_blobs() -> tuple[Tensor, dict[str, Tensor]]:
    """800 points at one place and 200 at another, with a component for each, weighed equally."""
    noise_TL = torch.randn(1000, 2, generator=draw(), dtype=torch.float64)
    centre_T = torch.where(torch.arange(1000) < 800, -50.0, 50.0)
    own = {
        "log_mixing": torch.zeros(1, 2, 1, dtype=torch.float64),
        "means": torch.tensor([[[[-50.0, -50.0]], [[50.0, 50.0]]]], dtype=torch.float64),
        "log_variances": torch.zeros(1, 2, 1, 2, dtype=torch.float64),
    }
    return noise_TL + centre_T[:, None], own


@pytest.mark.parametrize("reactivates", [False, True])
def test_the_gradient_of_the_mixing_weights_sums_to_0(reactivates: bool) -> None:
    """They are a distribution: if one grows, the others shrink."""
    latent_TL = torch.randn(50, 3, generator=draw(), dtype=torch.float64)
    own = {
        "log_mixing": torch.randn(2, 3, 4, generator=draw(1), dtype=torch.float64, requires_grad=True),
        "means": torch.randn(2, 3, 4, 3, generator=draw(2), dtype=torch.float64),
        "log_variances": torch.zeros(2, 3, 4, 3, dtype=torch.float64),
    }
    mixtures_loss(latent_TL, own, draw(3) if reactivates else None).backward()
    gradient_KEM = own["log_mixing"].grad
    assert gradient_KEM is not None and gradient_KEM.abs().max() > 0.01
    torch.testing.assert_close(gradient_KEM.sum(dim=(1, 2)), torch.zeros(2, dtype=torch.float64))


def test_the_most_likely_mixing_weights_stay() -> None:
    latent_TL, own = two_blobs()
    own["log_mixing"] = torch.tensor([[[0.8], [0.2]]], dtype=torch.float64).log().requires_grad_()
    mixtures_loss(latent_TL, own, None).backward()
    torch.testing.assert_close(own["log_mixing"].grad, torch.zeros(1, 2, 1, dtype=torch.float64))


def test_mixing_weights_learn() -> None:
    latent_TL, own = two_blobs()
    log_mixing = own["log_mixing"].requires_grad_()
    optimizer = torch.optim.AdamW([log_mixing], lr=0.01, weight_decay=0)
    for _ in range(150):
        optimizer.zero_grad()
        mixtures_loss(latent_TL, own, None).backward()
        optimizer.step()
    assert log_mixing.softmax(dim=1).flatten().tolist() == pytest.approx([0.8, 0.2], abs=0.02)


def clustered_start(latent_TL: Tensor) -> Mixture:
    """The other kind of start: an expert for each of four clusters, whose components are inside."""
    domain_T = k_means(latent_TL, EXPERTS, draw())
    return fit_mixture(latent_TL, domain_T, EXPERTS, COMPONENTS, draw(), lambda _: None)


def load_of(mixture: Mixture, latent_TL: Tensor) -> Tensor:
    experts_T1, _ = best_posteriors(mixture.log_joint(latent_TL)[:, None])
    return experts_T1.flatten().bincount(minlength=EXPERTS)


@pytest.mark.parametrize("seed", range(3))
def test_the_start_has_no_domains(seed: int) -> None:
    """There are sixteen blobs, some far away. One mixture of all is more likely, and uses experts evenly."""
    places = torch.randn(16, 6, generator=draw(10 + seed), dtype=torch.float64) * 3
    places[12:] += 12
    latent_TL = places.repeat(60, 1) + torch.randn(960, 6, generator=draw(20 + seed), dtype=torch.float64)
    found, clustered = start_mixture(latent_TL, EXPERTS, COMPONENTS, draw(seed)), clustered_start(latent_TL)
    assert [tuple(parameter.shape) for parameter in found] == [(4, 4), (4, 4, 6), (4, 4, 6)]
    likelihood, other = (
        mixture.log_joint(latent_TL).logsumexp(dim=(1, 2)).mean() for mixture in (found, clustered)
    )
    assert likelihood > other
    cv, other_cv = (variation(load_of(mixture, latent_TL).numpy()) for mixture in (found, clustered))
    assert cv < other_cv
