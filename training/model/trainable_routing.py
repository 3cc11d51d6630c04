"""Makes a served policy's decision trainable: weights with gradients, and probabilities."""

import torch
from torch import Tensor

from prismoe.kernels.mixture import expert_posteriors
from prismoe.model_plugins.routing.policies.gmm import GMM
from prismoe.model_plugins.routing.policies.top_any import TopAny
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy


def trainable_weights(policy: RoutingPolicy, step: RouterInputs, routing: Routing) -> Tensor:
    """The weights of `routing`, with the gradients of the policy's paper."""
    match policy:
        case TopAny():
            return _straight_through(policy.similarity(step), step.parameters["thresholds"], routing)
        case GMM():
            return routing.weights_TA.detach()  # the answers' loss does not reach the mixtures (Sec. 4.2)
    return routing.weights_TA


def _straight_through(similarity_TE: Tensor, thresholds_E: Tensor, routing: Routing) -> Tensor:
    """The weights of DynMoE's step function, whose gradient is that of the compared sigmoids (Eq. 5)."""
    soft_TE = torch.sigmoid(similarity_TE) - torch.sigmoid(thresholds_E)
    soft_TA = soft_TE.gather(1, routing.experts_TA)
    is_used_TA = routing.weights_TA > 0
    used_TA = torch.where(is_used_TA, 1 + soft_TA - soft_TA.detach(), 0)
    return used_TA / used_TA.sum(dim=1, keepdim=True)


def probabilities(policy: RoutingPolicy, step: RouterInputs, routing: Routing) -> Tensor:
    """The router's probability of each expert that it chooses from, `[T, gate_rows]` or `[T, E]`.

    For `gmm` it is the mean of the mixtures' posteriors. If a policy has no probabilities, its weights are
    used.
    """
    if routing.confidence is not None:
        return routing.confidence.probs_TE
    if isinstance(policy, GMM):
        return expert_posteriors(policy.log_joint(step)).mean(dim=1).float()
    probs_TE = routing.weights_TA.new_zeros(len(routing.weights_TA), step.num_experts)
    return probs_TE.scatter_add(1, routing.experts_TA, routing.weights_TA)
