"""How a router trains beside the answers' loss: a loss of its own, or a rule after each step.

None of it acts when serving. A policy that is not in TRAINING balances its load as MoE-LLaVA does.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from prismoe.kernels.mixture import log_joint
from prismoe.kernels.routing import PADDING, TEXT
from prismoe.model_plugins.tools.calibrate.fits.gmm import linear_encoder
from prismoe.model_plugins.tools.calibrate.fits.mixture import (
    VARIANCE_FLOOR,
    fit_mixture,
    k_means,
    k_means_centres,
    slow_components,
)
from prismoe.training.losses import (
    balance_loss,
    chosen_experts,
    diversity_loss,
    mixture_loss,
    reactivation_loss,
    reconstruction_loss,
)
from prismoe.training.model.moe_llava import DeepSpeedMoE, LayerDecision

COEFFICIENT = 0.01
"""The weight of a router's own losses, as in MoE-LLaVA, LTDR and IDA-MoE (α and β)."""
BIAS_STEP = 0.01
"""How far a step moves `bias_corrected`'s bias. AuxFree-MoE's 0.001 is for runs of many thousand steps."""


class RouterTraining(nn.Module):
    """One MoE layer's router: the load of all tokens is balanced (LTDR, Eq. 8).

    Its parameters train with the model and are no part of a checkpoint.
    """

    def __init__(self, moe: DeepSpeedMoE) -> None:
        super().__init__()

    def prepare(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        """Start the router from what the layer sees in one batch."""

    def loss(self, moe: DeepSpeedMoE, routing: LayerDecision) -> Tensor:
        """The weighted loss of one batch."""
        return COEFFICIENT * balance_loss(routing, routing.segment_T != PADDING)

    def after_step(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        """Called when the optimizer has stepped."""


class LanguageBalance(RouterTraining):
    """LTDR leaves vision tokens out of the balance (Eq. 10)."""

    def loss(self, moe: DeepSpeedMoE, routing: LayerDecision) -> Tensor:
        return COEFFICIENT * balance_loss(routing, routing.segment_T == TEXT)


class GroupBalance(RouterTraining):
    """Each modality's experts are balanced among themselves."""

    def loss(self, moe: DeepSpeedMoE, routing: LayerDecision) -> Tensor:
        is_text_T, is_vision_T = routing.segment_T == TEXT, routing.segment_T >= 0
        return COEFFICIENT * (balance_loss(routing, is_text_T) + balance_loss(routing, is_vision_T))


class Diversity(RouterTraining):
    """DynMoE keeps experts' embeddings apart instead of balancing their load (Eqs. 7 and 8)."""

    def loss(self, moe: DeepSpeedMoE, routing: LayerDecision) -> Tensor:
        return COEFFICIENT * diversity_loss(moe.router["expert_embeddings"])


class NoBalance(RouterTraining):
    """The answers' loss alone, as for INSTRUCT (LTDR, App. A.3)."""

    def loss(self, moe: DeepSpeedMoE, routing: LayerDecision) -> Tensor:
        return torch.zeros(())


class ClusterTraining(NoBalance):
    """CLUSTER's centres are the instructions' k-means and stay so; no balance either (LTDR, App. A.3)."""

    @torch.no_grad()
    def prepare(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        assert routing.asked is not None
        centres_CD = moe.router["centroids"]
        draw = torch.Generator().manual_seed(0)  # in every layer the same
        centres_CD.copy_(k_means_centres(routing.asked.requests.instruction_RD, len(centres_CD), draw))


class BiasCorrection(NoBalance):
    """AuxFree-MoE's rule (Algorithm 1): the bias of an expert with too little load rises, else it falls."""

    @torch.no_grad()
    def after_step(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        load_E = chosen_experts(routing)[routing.segment_T != PADDING].sum(dim=0)
        moe.router["expert_bias"] += BIAS_STEP * torch.sign(load_E.mean() - load_E)


class MixtureTraining(RouterTraining):
    """IDA-MoE's autoencoder and mixtures, with reactivation (Eqs. 13, 15 and 22 to 24)."""

    def __init__(self, moe: DeepSpeedMoE) -> None:
        super().__init__(moe)
        latent, hidden_size = moe.router["encoder"].shape
        self.decoder = nn.Linear(latent, hidden_size)
        self.draw = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def prepare(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        """Fit autoencoder and mixtures, as the paper does in its first two stages.

        An expert's domain is one of E clusters of the latents, other clusters in each mixture.
        """
        own = moe.router
        hidden_TD = routing.step.hidden_TD[routing.segment_T != PADDING].double()
        encoder_LD, bias_L = linear_encoder(hidden_TD, len(own["encoder"]))
        latent_TL = linear(hidden_TD, encoder_LD, bias_L)
        own["encoder"].copy_(encoder_LD)
        own["encoder_bias"].copy_(bias_L)
        self.decoder.weight.copy_(torch.linalg.pinv(encoder_LD))
        self.decoder.bias.copy_(hidden_TD.mean(dim=0))
        for mixture in range(len(own["log_mixing"])):
            domain_T = k_means(latent_TL, moe.num_experts, self.draw)
            components = own["log_mixing"].shape[-1]
            fit = fit_mixture(latent_TL, domain_T, moe.num_experts, components, self.draw, lambda _: None)
            own["log_mixing"][mixture] = fit.log_mixing_EM
            own["means"][mixture] = fit.means_EML
            own["log_variances"][mixture] = fit.log_variances_EML

    def loss(self, moe: DeepSpeedMoE, routing: LayerDecision) -> Tensor:
        own = moe.router
        hidden_TD = routing.step.hidden_TD[routing.segment_T != PADDING].detach()
        latent_TL = linear(hidden_TD, own["encoder"], own["encoder_bias"])
        joint_TKEM = log_joint(latent_TL.detach(), own["log_mixing"], own["means"], own["log_variances"])
        slow_KEM = slow_components(own["log_mixing"].detach(), self.draw)
        likelihood = mixture_loss(joint_TKEM) + reactivation_loss(joint_TKEM, slow_KEM)
        return COEFFICIENT * (reconstruction_loss(hidden_TD, self.decoder(latent_TL)) + likelihood).float()

    @torch.no_grad()
    def after_step(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        """A mixture's weights sum to 1, and no component is a spike."""
        own = moe.router
        own["log_mixing"] -= own["log_mixing"].logsumexp(dim=(-2, -1), keepdim=True)
        own["log_variances"].clamp_(min=torch.tensor(VARIANCE_FLOOR).log().item())


TRAINING: dict[str, type[RouterTraining]] = {
    "ltdr": LanguageBalance,
    "modality_groups": GroupBalance,
    "top_any": Diversity,
    "bias_corrected": BiasCorrection,
    "gmm": MixtureTraining,
    "cluster": ClusterTraining,
    "instruction": NoBalance,
}


def router_training(moe: DeepSpeedMoE) -> RouterTraining:
    """How this layer's router trains."""
    return TRAINING.get(moe.policy.policy, RouterTraining)(moe)
