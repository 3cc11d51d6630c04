"""Mixtures and encoder for data with a known answer, and a router that was drawn from one."""

import pytest
import torch
from torch import Tensor

from prismoe.kernels.routing import TEXT
from prismoe.model_plugins.tools.calibrate.fits import gmm
from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData, RoutedLayer, TokenSample
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal
from prismoe.model_plugins.tools.calibrate.fits.mixture import (
    REACTIVATION_STEPS,
    STEPS,
    Mixture,
    fit_mixture,
    k_means,
)
from tests.model_plugins.tools.calibrate.fits.recordings import EXPERTS, routed


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def last_fit(latent_NL: Tensor, expert_N: Tensor, experts: int, components: int) -> Mixture:
    steps: list[Mixture] = []
    mixture = fit_mixture(latent_NL.double(), expert_N, experts, components, draw(), steps.append)
    assert len(steps) == STEPS > REACTIVATION_STEPS
    assert steps[-1] is mixture
    return mixture


def test_two_separated_gaussians_are_found() -> None:
    means_2L = torch.tensor([[-5.0, 2.0], [5.0, 0.0]])
    deviations_2L = torch.tensor([[0.5, 1.0], [1.5, 0.7]])
    expert_N = (torch.rand(4000, generator=draw()) < 0.25).long()
    latent_NL = means_2L[expert_N] + deviations_2L[expert_N] * torch.randn(4000, 2, generator=draw(1))
    mixture = last_fit(latent_NL, expert_N, 2, 1)
    assert torch.allclose(mixture.means_EML[:, 0].float(), means_2L, atol=0.1)
    assert torch.allclose(mixture.log_variances_EML[:, 0].exp().sqrt().float(), deviations_2L, atol=0.1)
    assert torch.allclose(mixture.log_mixing_EM[:, 0].exp(), torch.tensor([0.75, 0.25]).double(), atol=0.02)


def test_each_expert_finds_its_own_clusters() -> None:
    centres_4L = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0], [8.0, 8.0]])
    cluster_N = torch.arange(800) % 4
    latent_NL = centres_4L[cluster_N] + 0.3 * torch.randn(800, 2, generator=draw())
    expert_N = (cluster_N >= 2).long()
    mixture = last_fit(latent_NL, expert_N, 2, 2)
    for expert in range(2):
        found = sorted(mixture.means_EML[expert].round().tolist())
        assert found == sorted(centres_4L[2 * expert : 2 * expert + 2].tolist())
    likeliest_N = mixture.log_joint(latent_NL.double()).amax(dim=2).argmax(dim=1)
    assert torch.equal(likeliest_N, expert_N)


def test_the_likelihood_rises_after_the_reactivation() -> None:
    latent_NL = torch.randn(500, 3, generator=draw()).double()
    expert_N = (latent_NL[:, 0] > 0).long()
    own_NE1 = torch.nn.functional.one_hot(expert_N, 2).bool()[:, :, None]
    steps: list[Mixture] = []
    fit_mixture(latent_NL, expert_N, 2, 4, draw(), steps.append)
    likelihoods = [
        mixture.log_joint(latent_NL).masked_fill(~own_NE1, -torch.inf).logsumexp(dim=(1, 2)).sum().item()
        for mixture in steps[REACTIVATION_STEPS:]
    ]
    assert likelihoods == sorted(likelihoods)


def test_an_expert_without_tokens_has_finite_components() -> None:
    latent_NL = torch.randn(40, 3, generator=draw())
    mixture = last_fit(latent_NL, torch.zeros(40, dtype=torch.long), 3, 5)
    assert all(torch.isfinite(parameter).all() for parameter in mixture)


def test_k_means_finds_separated_clusters() -> None:
    cluster_N = torch.arange(300) % 5
    points_NL = 10 * torch.eye(5)[cluster_N] + 0.1 * torch.randn(300, 5, generator=draw())
    found_N = k_means(points_NL, 5, draw())
    assert len({(a, b) for a, b in zip(cluster_N.tolist(), found_N.tolist(), strict=True)}) == 5


def test_the_encoder_loses_nothing_if_the_data_fit_the_latent_space() -> None:
    inner_NL, outer_LD = torch.randn(200, 3, generator=draw()), torch.randn(3, 9, generator=draw(1))
    hidden_ND = inner_NL.double() @ outer_LD.double() + 4
    encoder_LD, bias_L = gmm.linear_encoder(hidden_ND, 3)
    latent_NL = hidden_ND @ encoder_LD.T + bias_L
    assert torch.allclose(latent_NL.T @ latent_NL / 200, torch.eye(3).double(), atol=1e-8)
    with_one = torch.cat([latent_NL, torch.ones(200, 1).double()], dim=1)
    decoder = torch.linalg.lstsq(with_one, hidden_ND).solution
    assert torch.allclose(with_one @ decoder, hidden_ND, atol=1e-8)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_router_of_clusters_is_learnt(top_k: int) -> None:
    """The tokens form ten clusters, each with its own ranking of the experts."""
    generator = draw(3)
    ranking_CE = torch.stack([torch.randperm(EXPERTS, generator=generator) for _ in range(10)])
    centres_CD = 6 * torch.randn(10, 12, generator=generator)
    cluster_T = torch.randint(10, (1500,), generator=generator)
    hidden_TD = centres_CD[cluster_T] + 0.2 * torch.randn(1500, 12, generator=generator)
    logits_TE = -ranking_CE[cluster_T].argsort(dim=1).float()
    sample = TokenSample(logits_TE, torch.full((1500,), TEXT), hidden_TD)
    data = CalibrationData({4: RoutedLayer(EXPERTS, sample)}, top_k)
    fitted = gmm.fit(data, Goal({"latent": 6, "components": 10}))
    assert {name: tuple(tensor.shape) for name, tensor in fitted.tensors[4].items()} == {
        "encoder": (6, 12),
        "encoder_bias": (6,),
        "log_mixing": (top_k, EXPERTS, 10),
        "means": (top_k, EXPERTS, 10, 6),
        "log_variances": (top_k, EXPERTS, 10, 6),
    }
    routing = routed(data, fitted)[4]
    assert torch.equal(routing.experts_TA, ranking_CE[cluster_T][:, :top_k])
