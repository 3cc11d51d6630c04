"""What a gradient sees of a routing whose weights are no smooth function of the router."""

import torch
from torch import Tensor

from prismoe.model_plugins.routing.gmm import GMM
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy
from prismoe.model_plugins.routing.top_any import TopAny


def trainable_weights(policy: RoutingPolicy, step: RouterInputs, routing: Routing) -> Tensor:
    """The weights of `routing`, with the gradients that the policy's paper gives them."""
    match policy:
        case TopAny():
            return _straight_through(policy.similarity(step), step.parameters["thresholds"], routing)
        case GMM():
            return routing.weights_TA.detach()  # the answers' loss does not reach the mixtures (Sec. 4.2)
    return routing.weights_TA


def _straight_through(similarity_TE: Tensor, thresholds_E: Tensor, routing: Routing) -> Tensor:
    """DynMoE's step function passes the gradient on to the sigmoids that it compares (Eq. 5)."""
    soft_TE = torch.sigmoid(similarity_TE) - torch.sigmoid(thresholds_E)
    soft_TA = soft_TE.gather(1, routing.experts_TA)
    used_TA = (routing.weights_TA > 0).float() + soft_TA - soft_TA.detach()
    is_used_TA = routing.weights_TA > 0
    return torch.where(is_used_TA, used_TA / (used_TA * is_used_TA).sum(dim=1, keepdim=True), 0)
