"""What training needs of a served policy's decision: weights with gradients, and probabilities."""

import torch
from torch import Tensor

from prismoe.kernels.mixture import expert_posteriors
from prismoe.model_plugins.routing.policies.gmm import GMM
from prismoe.model_plugins.routing.policies.top_any import TopAny
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy


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
    is_used_TA = routing.weights_TA > 0
    used_TA = torch.where(is_used_TA, 1 + soft_TA - soft_TA.detach(), 0)
    return used_TA / used_TA.sum(dim=1, keepdim=True)


def probabilities(policy: RoutingPolicy, step: RouterInputs, routing: Routing) -> Tensor:
    """How likely the router finds each expert that it chooses among, `[T, gate_rows]` or `[T, E]`.

    Of `gmm` the mean of the mixtures' posteriors. Without any the experts in use are equally likely.
    """
    if routing.confidence is not None:
        return routing.confidence.probs_TE
    if isinstance(policy, GMM):
        return expert_posteriors(policy.log_joint(step)).mean(dim=1).float()
    probs_TE = routing.weights_TA.new_zeros(len(routing.weights_TA), step.num_experts)
    return probs_TE.scatter_add(1, routing.experts_TA, routing.weights_TA)
