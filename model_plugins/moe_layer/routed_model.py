"""The routing layer of a model: each MoE layer's policy and load, and the running step's segments.

It knows nothing of the model: the model asks it for a router per MoE layer and tells it what each step holds.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.platforms import current_platform

from prismoe.kernels.expert_load import LayerLoad, empty_load
from prismoe.model_plugins.moe_layer.request_logits import RequestLogits
from prismoe.model_plugins.moe_layer.router import PolicyRouter
from prismoe.model_plugins.moe_layer.token_segments import TokenSegments
from prismoe.model_plugins.routing import ROUTING_KEY
from prismoe.model_plugins.routing.policy import RoutingPolicy
from prismoe.model_plugins.routing.registry import RoutingInForce
from prismoe.model_plugins.routing.request_policy import RequestPolicy
from prismoe.model_plugins.vllm_seams.step_watch import watch_steps


def operator_routing(vllm_config: VllmConfig) -> Mapping[str, Any] | None:
    """The routing settings that the operator gave, None where the checkpoint's are in force."""
    settings: dict[str, Any] = vllm_config.additional_config  # type: ignore[assignment]
    return settings.get(ROUTING_KEY)


def router_parameters(policy: RoutingPolicy, hidden_size: int, num_experts: int) -> nn.ParameterDict:
    """The policy's parameters by name, to be loaded from a checkpoint."""
    parameters = nn.ParameterDict()
    for name, shape in policy.parameters(hidden_size, num_experts).items():
        parameter = nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=False)
        parameter.weight_loader = partial(_load, name)  # type: ignore[attr-defined]  # vLLM's protocol
        parameters[name] = parameter
    return parameters


def _load(name: str, parameter: Tensor, weight: Tensor) -> None:
    if parameter.shape != weight.shape:
        raise ValueError(
            f"The checkpoint's router parameter {name} has shape {tuple(weight.shape)}, but its routing "
            f"policy needs {tuple(parameter.shape)}: correct the policy's settings or the checkpoint."
        )
    parameter.copy_(weight)


def router_class(policy: RoutingPolicy, num_experts: int) -> type[PolicyRouter]:
    """How this platform routes by `policy`."""
    if current_platform.is_cuda():
        from prismoe.model_plugins.moe_layer.gpu_router import FusedRouter, fused_routing_works

        if fused_routing_works(policy, num_experts):
            return FusedRouter
    return PolicyRouter


class ModalityRouting(nn.Module):
    """The routers of a model, and the load they count."""

    def __init__(self, vllm_config: VllmConfig, in_force: RoutingInForce) -> None:
        super().__init__()
        self.in_force = in_force
        scheduler = vllm_config.scheduler_config
        self.segments = TokenSegments(scheduler.max_num_batched_tokens)
        by_request = in_force.experts_by_request_layer
        self.requests = (
            RequestLogits(by_request, scheduler.max_num_batched_tokens, scheduler.max_num_seqs)
            if by_request
            else None
        )
        self.routers: dict[int, PolicyRouter] = {}

    def router(self, layer: int, num_experts: int, hidden_size: int) -> PolicyRouter:
        """The router of decoder layer `layer`. The model registers its `parameters`, and loads them."""
        load_MC = empty_load(num_experts)
        self.register_buffer(f"load_of_layer_{layer}", load_MC, persistent=False)
        policy = self.in_force.layers[layer].policy
        parameters = router_parameters(policy, hidden_size, num_experts)
        request_gate = None
        if self.requests is not None and isinstance(policy, RequestPolicy):
            request_gate = self.requests.add_layer(layer, policy, dict(parameters.items()))
        self.routers[layer] = router_class(policy, num_experts)(
            policy,
            num_experts,
            self.segments,
            load_MC,
            parameters,
            request_gate,
        )
        return self.routers[layer]

    def watch(self, runner: Any, embed: Callable[[Tensor], Tensor]) -> None:
        """Learn of `runner`'s requests, if a policy in force decides by them.

        `embed` gives token ids' embeddings.
        """
        if self.requests is not None:
            watch_steps(runner, partial(self.requests.begin_step, embed=embed))

    def describe(self) -> dict[str, Any]:
        """What is in force per layer, and where each setting was said."""
        layers = [
            {
                "layer": layer,
                "experts": router.global_num_experts,
                "policy": self.in_force.layers[layer].policy.model_dump(),
                "sources": dict(self.in_force.layers[layer].sources),
            }
            for layer, router in self.routers.items()
        ]
        return {"source": self.in_force.source, "layers": layers}

    def reset_load(self) -> None:
        """Count from zero: on CUDA vLLM warms up with made-up requests, which look like real ones here."""
        for router in self.routers.values():
            router.reset_load()

    def load(self) -> Mapping[str, Sequence[Any]]:
        """The load counted so far: a list by layer for each field of `LayerLoad`."""
        layers = [router.load() for router in self.routers.values()]
        return {
            "layers": list(self.routers),
            **{name: [getattr(layer, name) for layer in layers] for name in LayerLoad._fields},
        }
