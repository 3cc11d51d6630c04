"""Trains a router with the losses of its settings and its own rule, in addition to the answers' loss.

None of this acts when serving.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prismoe.kernels.routing import PADDING, TEXT
from prismoe.training.losses import (
    balance_loss,
    diversity_loss,
    entropy_floor_loss,
    modality_contrast,
    routed_conflict_loss,
    text_balance_loss,
    utilisation_floor_loss,
    z_loss,
)
from prismoe.training.model.moe_llava import DeepSpeedMoE, LayerDecision
from prismoe.training.router_rules import OWN_RULES, OwnRule
from prismoe.training.router_settings import RouterSettings, published

COEFFICIENT = 0.01
"""The weight of a router's losses, from MoE-LLaVA and LTDR. Losses of unknown weight have it, too."""
Z_COEFFICIENT = 0.001
"""The weight of the z-loss in ST-MoE."""


class RouterTraining(nn.Module):
    """The training of one MoE layer's router. Its own parameters are not part of a checkpoint."""

    def __init__(self, moe: DeepSpeedMoE, settings: RouterSettings) -> None:
        super().__init__()
        self.settings = settings
        self.own = OWN_RULES.get(moe.policy.policy, OwnRule)(moe, settings)
        moe.mean_over_batch = settings.tail_mean == "batch"

    def prepare(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        """Initialise the router from the layer's inputs in one batch."""
        self.own.prepare(moe, routing)

    def loss(self, moe: DeepSpeedMoE, routing: LayerDecision, gradient_TD: Tensor | None = None) -> Tensor:
        """The weighted loss of one batch.

        `gradient_TD` is the gradient of the answers' loss with respect to the layer's output, for `conflict`.
        """
        chosen = COEFFICIENT * torch.stack(list(self._chosen(moe, routing, gradient_TD))).sum()
        if self.settings.z_loss:
            assert routing.logits_TE is not None
            chosen = chosen + Z_COEFFICIENT * z_loss(routing.logits_TE[routing.segment_T != PADDING])
        return self.own.loss(moe, routing) + chosen

    def _chosen(
        self, moe: DeepSpeedMoE, routing: LayerDecision, gradient_TD: Tensor | None
    ) -> Iterator[Tensor]:
        """The losses that have the same weight."""
        settings, is_counted_T = self.settings, routing.segment_T != PADDING
        yield self._balance(routing)
        if settings.diversity:
            yield diversity_loss(moe.router["expert_embeddings"])
        if settings.conflict:
            assert gradient_TD is not None
            yield routed_conflict_loss(routing, gradient_TD)
        if settings.modality_contrast:
            assert routing.logits_TE is not None
            yield modality_contrast(routing.logits_TE, routing.segment_T)
        if settings.utilisation_floor:
            yield utilisation_floor_loss(routing, is_counted_T, settings.utilisation_floor)
        if settings.entropy_floor:
            yield entropy_floor_loss(routing.probs_TE, is_counted_T, settings.entropy_floor)

    def after_step(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        """Runs after each step of the optimizer."""
        self.own.after_step(moe, routing)

    def _balance(self, routing: LayerDecision) -> Tensor:
        segment_T = routing.segment_T
        match self.settings.balance:
            case "all":
                return balance_loss(routing, segment_T != PADDING)
            case "text":
                return text_balance_loss(routing)
            case "vision":
                return balance_loss(routing, segment_T >= 0)
            case "modality":
                return balance_loss(routing, segment_T == TEXT) + balance_loss(routing, segment_T >= 0)
            case "none":
                return torch.zeros(())


def router_training(moe: DeepSpeedMoE, settings: RouterSettings | None = None) -> RouterTraining:
    """The training of this layer's router: by `settings`, or else as in its paper.

    Raises ValueError if a setting has no meaning for the layer's policy.
    """
    settings = settings or published(moe.policy.policy)
    settings.check(moe.policy.policy)
    return RouterTraining(moe, settings)
