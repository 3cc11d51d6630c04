"""Fits a `gmm` router to a checkpoint's routers (IDA-MoE, arXiv 2510.16448, Eqs. 12 to 15, 21 to 24).

The paper trains encoder, mixtures and model together (Eq. 24). Here the model stays unchanged, so the losses
are minimised one after the other: first the autoencoder's, then the mixtures'.

Shape legend: N tokens, D hidden, L latent, E experts, K mixtures, A slots.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear
from tqdm import tqdm

from prismoe.kernels.routing import ranked_experts
from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData, TokenSample
from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, RouterFit
from prismoe.model_plugins.tools.calibrate.fits.mixture import STEPS, Mixture, fit_mixture

LATENT, COMPONENTS = 32, 16  # the paper's


def fit(data: CalibrationData, goal: Goal) -> RouterFit:
    """Fit an encoder and k mixtures for each layer; mixture j learns each token's j-th choice of expert."""
    samples = data.samples()
    hidden_size = next(iter(samples.values())).hidden_ND.shape[1]
    top_k = goal.settings.get("top_k", data.top_k)
    latent = goal.settings.get("latent", min(LATENT, hidden_size))
    components = goal.settings.get("components", COMPONENTS)
    tensors = {}
    with tqdm(total=len(samples) * top_k * STEPS, desc="Mixtures") as progress:
        for layer, sample in samples.items():
            tensors[layer] = _router(sample, top_k, latent, components, progress)
    settings = {"policy": "gmm", **goal.settings, "latent": latent, "components": components}
    return RouterFit(settings, tensors=tensors)


def _router(
    sample: TokenSample, top_k: int, latent: int, components: int, progress: tqdm
) -> dict[str, Tensor]:
    encoder_LD, bias_L = linear_encoder(sample.hidden_ND.double(), latent)
    latent_NL = linear(sample.hidden_ND.double(), encoder_LD, bias_L)
    experts_NA, _ = ranked_experts(sample.logits_NE, top_k)
    draw = torch.Generator().manual_seed(0)
    mixtures: list[Mixture] = []
    for expert_N in experts_NA.T:
        mixtures.append(
            fit_mixture(
                latent_NL, expert_N, sample.logits_NE.shape[1], components, draw, lambda _: progress.update()
            )
        )
    names = ("log_mixing", "means", "log_variances")
    tensors = dict(zip(names, map(torch.stack, zip(*mixtures, strict=True)), strict=True))
    tensors |= {"encoder": encoder_LD, "encoder_bias": bias_L}
    return {name: tensor.float() for name, tensor in tensors.items()}


def linear_encoder(hidden_ND: Tensor, latent: int) -> tuple[Tensor, Tensor]:
    """The encoder of the linear autoencoder with the least reconstruction error (Eq. 13), and its bias.

    That error is the same for every invertible map of the latents. Its known minimum, the principal
    components, is used here, scaled to unit variance.
    """
    mean_D = hidden_ND.mean(dim=0)
    centred_ND = hidden_ND - mean_D
    covariance_DD = centred_ND.T @ centred_ND / len(hidden_ND)
    variance_D, vectors_DD = torch.linalg.eigh(covariance_DD)  # in rising order
    scale_L = variance_D[-latent:].clamp(min=variance_D[-1] * 1e-9).rsqrt()
    encoder_LD = vectors_DD[:, -latent:].T * scale_L[:, None]
    return encoder_LD, -encoder_LD @ mean_D
