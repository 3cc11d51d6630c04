"""`gmm`: routing by the domain of the input (IDA-MoE, arXiv 2510.16448, Eqs. 12, 14 and 16 to 20)."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear

from prismoe.kernels.fused_rule import MixtureRule
from prismoe.kernels.mixture import best_posteriors, log_joint
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy, check_experts


class GMM(RoutingPolicy):
    """k mixtures of Gaussians over an encoding of the token; each picks the expert of its best component.

    The weights are a softmax over the k best posteriors (Eq. 19). Two mixtures may pick the same expert: the
    token then uses it twice, with both weights, and the load counts both uses. Text and vision are routed in
    the same way. The paper describes its encoder only as a simple network; here it is one linear layer.
    """

    policy: Literal["gmm"] = "gmm"
    top_k: int = Field(ge=1)
    latent: int = Field(default=32, ge=1)
    components: int = Field(default=16, ge=1)

    def slots(self, num_experts: int) -> int:
        check_experts("top_k", self.top_k, num_experts)
        return self.top_k

    @property
    def uses_all_slots(self) -> bool:
        return True

    def gate_rows(self, num_experts: int) -> int:
        return 0

    def parameters(self, hidden_size: int, num_experts: int) -> Mapping[str, tuple[int, ...]]:
        mixtures = (self.top_k, num_experts, self.components)
        return {
            "encoder": (self.latent, hidden_size),
            "encoder_bias": (self.latent,),
            "log_mixing": mixtures,
            "means": (*mixtures, self.latent),
            "log_variances": (*mixtures, self.latent),
        }

    def log_joint(self, step: RouterInputs) -> Tensor:
        """log(π N(z; μ, Σ)) of every component, `[T, K, E, M]` in float64 (Eqs. 12 and 14)."""
        return log_joint(*self.fused_rule(step))

    def fused_rule(self, step: RouterInputs) -> MixtureRule:
        own = step.parameters
        latent_TL = linear(step.hidden_TD.float(), own["encoder"], own["encoder_bias"])
        return MixtureRule(latent_TL, own["log_mixing"], own["means"], own["log_variances"])

    def route(self, step: RouterInputs) -> Routing:
        experts_TK, posteriors_TK = best_posteriors(self.log_joint(step))
        return Routing.of_equal_counts(experts_TK, torch.softmax(posteriors_TK, dim=-1).float(), None)
