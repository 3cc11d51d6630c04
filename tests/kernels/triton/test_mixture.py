"""The fused mixtures compared with the plain float64 ones, in Triton's interpreter."""

import pytest
import torch
from torch import Tensor

from prismoe.kernels.mixture import best_posteriors, log_joint
from prismoe.kernels.triton import mixture as triton_mixture
from prismoe.kernels.triton.mixture import mixture_router

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
EVERYWHERE = (0, 10**6)
"""Values of `FEW_TOKENS`, so that each test runs both sizes of a program."""


@pytest.fixture(params=EVERYWHERE, ids=["blocks of tokens", "single tokens"])
def both_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_mixture, "FEW_TOKENS", request.param)


def random_inputs(tokens: int, mixtures: int, experts: int, components: int, latent: int) -> Inputs:
    generator = torch.Generator().manual_seed(tokens + experts)
    shape = (mixtures, experts, components)
    log_mixing_KC = torch.randn(mixtures, experts * components, generator=generator).log_softmax(dim=-1)
    means_KEML, log_variances_KEML = torch.randn(2, *shape, latent, generator=generator)
    return (
        torch.randn(tokens, latent, generator=generator),
        log_mixing_KC.view(shape),
        means_KEML,
        log_variances_KEML,
    )


def check_against_plain(inputs: Inputs) -> Tensor:
    """Check the experts, and return them.

    Each has the highest log density except for float32's rounding. So if the best two experts differ by more
    than 1e-5 of it, the choice is that of the plain form.
    """
    experts_TK, weights_TK = mixture_router(*inputs)
    assert experts_TK.dtype == torch.int32
    joint_TKEM = log_joint(*inputs)
    best_TKE = joint_TKEM.amax(dim=-1)
    chosen_TK = best_TKE.gather(-1, experts_TK.long()[..., None])[..., 0]
    torch.testing.assert_close(chosen_TK, best_TKE.amax(dim=-1), rtol=1e-5, atol=1e-5)
    _, posteriors_TK = best_posteriors(joint_TKEM)
    torch.testing.assert_close(weights_TK, posteriors_TK.softmax(dim=-1).float(), rtol=1e-5, atol=1e-5)
    return experts_TK


@pytest.mark.usefixtures("both_sizes")
@pytest.mark.parametrize(
    ("tokens", "mixtures", "experts", "components", "latent"),
    [
        (1, 1, 1, 1, 1),
        (1, 2, 4, 16, 32),
        (3, 3, 7, 3, 5),
        (3, 2, 64, 16, 32),
        (65, 2, 4, 16, 32),
        (65, 2, 3, 16, 5),
        (65, 1, 64, 1, 32),
        (65, 3, 4, 3, 1),
    ],
)
def test_it_decides_like_the_plain_form(
    tokens: int, mixtures: int, experts: int, components: int, latent: int
) -> None:
    check_against_plain(random_inputs(tokens, mixtures, experts, components, latent))


@pytest.mark.usefixtures("both_sizes")
def test_large_squares_lose_no_precision() -> None:
    """Experts that differ by 1e-3 in log density are distinguished, far from 0 and with small variances."""
    latent_TL, log_mixing_KEM, means_KEML, log_variances_KEML = random_inputs(20, 2, 4, 16, 32)
    log_mixing_KEM = log_mixing_KEM[:, :1] + 1e-3 * torch.tensor([0, 1, 3, 2])[:, None]
    means_KEML = (means_KEML[:, :1] / 10 + 30).repeat(1, 4, 1, 1)
    log_variances_KEML = log_variances_KEML[:, :1].repeat(1, 4, 1, 1) - 4
    inputs = latent_TL / 10 + 30, log_mixing_KEM, means_KEML, log_variances_KEML
    assert (check_against_plain(inputs) == 2).all()


@pytest.mark.usefixtures("both_sizes")
@pytest.mark.parametrize("higher", [6, 8, 63])
def test_the_lower_of_two_equal_experts_wins(higher: int) -> None:
    """Its place in its block does not matter; the other experts have no share in the mixture."""
    latent_TL, log_mixing_KEM, means_KEML, log_variances_KEML = random_inputs(9, 2, 64, 16, 32)
    for parameter in (log_mixing_KEM, means_KEML, log_variances_KEML):
        parameter[:, higher] = parameter[:, 5]
    for expert in set(range(64)) - {5, higher}:
        log_mixing_KEM[:, expert] = -torch.inf
    inputs = latent_TL, log_mixing_KEM, means_KEML, log_variances_KEML
    assert (check_against_plain(inputs) == 5).all()


@pytest.mark.usefixtures("both_sizes")
@pytest.mark.parametrize("experts", [1, 3, 4])
def test_padding_with_any_content_gets_an_expert(experts: int) -> None:
    latent_TL, *parameters = random_inputs(12, 2, experts, 3, 5)
    expected_TK, expected_weights_TK = mixture_router(latent_TL, *parameters)
    latent_TL[7:] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30])[:, None]
    latent_TL[9, 1] = torch.nan
    experts_TK, weights_TK = mixture_router(latent_TL, *parameters)
    assert ((experts_TK >= 0) & (experts_TK < experts)).all()
    assert weights_TK.isfinite().all()
    assert torch.equal(experts_TK[:7], expected_TK[:7])
    assert torch.equal(weights_TK[:7], expected_weights_TK[:7])


@pytest.mark.parametrize("tokens", [1, triton_mixture.FEW_TOKENS, triton_mixture.FEW_TOKENS + 1, 4096, 8192])
def test_a_gpu_gets_enough_programs(tokens: int) -> None:
    """There is one program for each of its 100 to 150 multiprocessors if there are enough tokens."""
    block_t = triton_mixture.tiles(tokens, components=64, latent=32)["BLOCK_T"]
    assert tokens / block_t >= min(tokens, 100)


def test_many_tokens() -> None:
    check_against_plain(random_inputs(triton_mixture.FEW_TOKENS + 1, 2, 4, 3, 5))
