"""How a router trains beside the answers' loss: by the losses that its settings choose, and a rule for what
it owns. None of it acts when serving.
"""

import torch
from torch import Tensor, nn

from prismoe.kernels.routing import PADDING, TEXT
from prismoe.training.losses import balance_loss, diversity_loss, text_balance_loss
from prismoe.training.model.moe_llava import DeepSpeedMoE, LayerDecision
from prismoe.training.router_rules import OWN_RULES, OwnRule
from prismoe.training.router_settings import RouterSettings, published

COEFFICIENT = 0.01
"""The weight of a router's losses, as in MoE-LLaVA and LTDR."""


class RouterTraining(nn.Module):
    """One MoE layer's router. Its parameters train with the model and are no part of a checkpoint."""

    def __init__(self, moe: DeepSpeedMoE, settings: RouterSettings) -> None:
        super().__init__()
        self.settings = settings
        self.own = OWN_RULES.get(moe.policy.policy, OwnRule)(moe, settings)
        moe.mean_over_batch = settings.tail_mean == "batch"

    def prepare(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        """Start the router from what the layer sees in one batch."""
        self.own.prepare(moe, routing)

    def loss(self, moe: DeepSpeedMoE, routing: LayerDecision) -> Tensor:
        """The weighted loss of one batch."""
        loss = self.own.loss(moe, routing) + COEFFICIENT * self._balance(routing)
        if self.settings.diversity:
            loss = loss + COEFFICIENT * diversity_loss(moe.router["expert_embeddings"])
        return loss

    def after_step(self, moe: DeepSpeedMoE, routing: LayerDecision) -> None:
        """Called when the optimizer has stepped."""
        self.own.after_step(moe, routing)

    def _balance(self, routing: LayerDecision) -> Tensor:
        segment_T = routing.segment_T
        match self.settings.balance:
            case "all":
                return balance_loss(routing, segment_T != PADDING)
            case "text":
                return text_balance_loss(routing)
            case "modality":
                return balance_loss(routing, segment_T == TEXT) + balance_loss(routing, segment_T >= 0)
            case "none":
                return torch.zeros(())


def router_training(moe: DeepSpeedMoE, settings: RouterSettings | None = None) -> RouterTraining:
    """How this layer's router trains: by `settings`, else as its paper says."""
    return RouterTraining(moe, settings or published(moe.policy.policy))
