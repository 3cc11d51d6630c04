"""Experts' posteriors compared with plain float64 sums."""

import numpy as np
import pytest
import torch

from prismoe.kernels.mixture import expert_posteriors, log_joint


@pytest.mark.parametrize(("tokens", "mixtures", "experts", "components"), [(1, 1, 1, 1), (7, 2, 5, 3)])
def test_expert_posteriors(tokens: int, mixtures: int, experts: int, components: int) -> None:
    draw = np.random.default_rng(tokens)
    shape = (mixtures, experts, components)
    latent, log_mixing = draw.normal(size=(tokens, 4)), np.log(draw.dirichlet(np.ones(shape[1:]).ravel()))
    log_mixing = np.broadcast_to(log_mixing.reshape(shape[1:]), shape)
    means, log_variances = draw.normal(size=(*shape, 4)), draw.normal(size=(*shape, 4))
    joint = log_joint(*map(torch.tensor, (latent, log_mixing, means, log_variances)))
    actual = expert_posteriors(joint).numpy()
    assert actual.shape == (tokens, mixtures, experts)
    for t in range(tokens):
        for k in range(mixtures):
            variances = np.exp(log_variances[k])
            square = ((latent[t] - means[k]) ** 2 / variances + np.log(2 * np.pi * variances)).sum(axis=-1)
            density = np.exp(log_mixing[k] - square / 2)
            assert np.allclose(actual[t, k], density.sum(axis=-1) / density.sum(), atol=1e-12)
