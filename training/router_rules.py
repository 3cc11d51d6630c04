"""Trains the policies' parameters that the answers' loss does not train, each by its own rule.

None of the rules acts when serving.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from prismoe.kernels.mixture import log_joint
from prismoe.kernels.routing import PADDING
from prismoe.model_plugins.tools.calibrate.fits.gmm import linear_encoder
from prismoe.model_plugins.tools.calibrate.fits.mixture import (
    REACTIVATION_STEPS,
    VARIANCE_FLOOR,
    Mixture,
    fit_mixture,
    k_means_centres,
    slow_components,
)
from prismoe.training.losses import (
    chosen_experts,
    log_mixing_weights,
    mixture_loss,
    reactivation_loss,
    reconstruction_loss,
)
from prismoe.training.model.moe_llava import DeepSpeedMoE, LayerDecision
from prismoe.training.router_settings import RouterSettings

COEFFICIENT = 0.01
"""The weight of the autoencoder's and the mixtures' losses (IDA-MoE, Sec. 5.1: α and β)."""
BIAS_STEP = 0.01
"""The change of `bias_corrected`'s bias in a step. AuxFree-MoE's 0.001 is for many thousand steps."""


class OwnRule(nn.Module):
    """The base of the rules, for one MoE layer. By itself it does nothing.

    A rule's own parameters train with the model. They are not part of a checkpoint.
    """

    def __init__(self, moe: DeepSpeedMoE, settings: RouterSettings) -> None:
        super().__init__()

    def prepare(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        """Initialise the router from the layer's inputs in one batch."""

    def loss(self, moe: DeepSpeedMoE, routing: LayerDecision) -> Tensor:
        """The weighted loss of one batch."""
        return torch.zeros(())

    def after_step(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        """Runs after each step of the optimizer."""


class ClusterCentres(OwnRule):
    """CLUSTER's centres are the k-means centres of the instructions, and never change (LTDR, App. A.3)."""

    @torch.no_grad()
    def prepare(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        assert routing.asked is not None
        centres_CD = moe.router["centroids"]
        draw = torch.Generator().manual_seed(0)  # the same in every layer
        centres_CD.copy_(k_means_centres(routing.asked.requests.instruction_RD, len(centres_CD), draw))


class BiasCorrection(OwnRule):
    """AuxFree-MoE's rule (Algorithm 1): an expert with too little load gets a higher bias, others a lower."""

    @torch.no_grad()
    def after_step(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        load_E = chosen_experts(routing)[routing.segment_T != PADDING].sum(dim=0)
        moe.router["expert_bias"] += BIAS_STEP * torch.sign(load_E.mean() - load_E)


class Mixtures(OwnRule):
    """IDA-MoE's autoencoder and mixtures, with or without reactivation (Eqs. 13, 15 and 22 to 24)."""

    def __init__(self, moe: DeepSpeedMoE, settings: RouterSettings) -> None:
        super().__init__(moe, settings)
        latent, hidden_size = moe.router["encoder"].shape
        self.decoder = nn.Linear(latent, hidden_size)
        self.draw = torch.Generator().manual_seed(0)
        self.reactivates = settings.reactivation

    @torch.no_grad()
    def prepare(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        """Fit the autoencoder and the mixtures, as in the paper's first two stages."""
        own = moe.router
        hidden_TD = routing.step.hidden_TD[routing.segment_T != PADDING].double()
        encoder_LD, bias_L = linear_encoder(hidden_TD, len(own["encoder"]))
        latent_TL = linear(hidden_TD, encoder_LD, bias_L)
        own["encoder"].copy_(encoder_LD)
        own["encoder_bias"].copy_(bias_L)
        self.decoder.weight.copy_(torch.linalg.pinv(encoder_LD))
        self.decoder.bias.copy_(hidden_TD.mean(dim=0))
        mixtures, experts, components = own["log_mixing"].shape
        for mixture in range(mixtures):
            fit = start_mixture(latent_TL, experts, components, self.draw, self.reactivates)
            own["log_mixing"][mixture] = fit.log_mixing_EM
            own["means"][mixture] = fit.means_EML
            own["log_variances"][mixture] = fit.log_variances_EML

    def loss(self, moe: DeepSpeedMoE, routing: LayerDecision) -> Tensor:
        own = moe.router
        hidden_TD = routing.step.hidden_TD[routing.segment_T != PADDING].detach()
        latent_TL = linear(hidden_TD, own["encoder"], own["encoder_bias"])
        likelihood = mixtures_loss(latent_TL.detach(), dict(own), self.draw if self.reactivates else None)
        return COEFFICIENT * (reconstruction_loss(hidden_TD, self.decoder(latent_TL)) + likelihood).float()

    @torch.no_grad()
    def after_step(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        """Keep variances above the floor, and scale the mixing weights to sum 1, as the loss does."""
        own = moe.router
        own["log_mixing"].copy_(log_mixing_weights(own["log_mixing"]))
        own["log_variances"].clamp_(min=torch.tensor(VARIANCE_FLOOR).log().item())


def start_mixture(
    latent_TL: Tensor, experts: int, components: int, draw: torch.Generator, reactivates: bool = True
) -> Mixture:
    """Fit one mixture to all tokens, and give each expert random components of it.

    At the start no expert has a domain (IDA-MoE, Eqs. 14 and 15). An expert with components from the whole
    space has a load closer to the mean than one with the components of a single cluster.
    """
    everyone_T = torch.zeros(len(latent_TL), dtype=torch.int64)
    steps = REACTIVATION_STEPS if reactivates else 0
    fit = fit_mixture(latent_TL, everyone_T, 1, experts * components, draw, lambda _: None, steps)
    dealt = torch.randperm(experts * components, generator=draw)
    return Mixture(*(parameter[0, dealt].unflatten(0, (experts, components)) for parameter in fit))


def mixtures_loss(latent_TL: Tensor, own: Mapping[str, Tensor], draw: torch.Generator | None) -> Tensor:
    """The loss of the mixtures `own` on latents without a gradient (IDA-MoE, Eqs. 15, 23 and 24).

    `draw` draws the slow components (Eq. 22) from the mixing weights. None means no reactivation.
    """
    log_mixing_KEM = log_mixing_weights(own["log_mixing"])
    joint_TKEM = log_joint(latent_TL, log_mixing_KEM, own["means"], own["log_variances"])
    if draw is None:
        return mixture_loss(joint_TKEM)
    slow_KEM = slow_components(log_mixing_KEM.detach(), draw)
    return mixture_loss(joint_TKEM) + reactivation_loss(joint_TKEM, slow_KEM)


OWN_RULES: dict[str, type[OwnRule]] = {
    "bias_corrected": BiasCorrection,
    "cluster": ClusterCentres,
    "gmm": Mixtures,
}
