"""A model's MoE layers together: the running step, the load counted so far, and the routing in force.

`PolicyRouting` is for models built with prismoe's routers; `native.NativeRouting` works beside the routers of
a model that vLLM has built.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.platforms import current_platform

from prismoe.kernels.expert_load import LayerShape
from prismoe.model_plugins.moe_layer.load_counter import LoadCounter
from prismoe.model_plugins.moe_layer.request_logits import RequestLogits
from prismoe.model_plugins.moe_layer.router import Observer, PolicyRouter, layer_shape
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.routing import RoutedBy
from prismoe.model_plugins.routing.gate import Gate
from prismoe.model_plugins.routing.policy import RoutingPolicy
from prismoe.model_plugins.routing.registry import RoutingInForce, choose_routing
from prismoe.model_plugins.routing.request_policy import RequestPolicy
from prismoe.model_plugins.routing.thresholds import ThresholdsByLayer
from prismoe.model_plugins.vllm_seams.engine.step_watch import StepRequests, watch_steps


class Observed(Protocol):
    """The router of a MoE layer, or what takes its place."""

    gate: Gate
    observer: Observer | None


class ModelRouting(nn.Module, ABC):
    """The routing of a model. `layers` are the MoE layers by their index in the decoder, in order."""

    not_supported: Sequence[str] = ()
    """What prismoe can't do with this model, one sentence each."""
    switchable = False
    """Whether `route_by` and `change_thresholds` may be called: there are both a policy and native."""
    routed_by: RoutedBy = "policy"

    def __init__(
        self,
        architecture: str,
        modalities: Sequence[str],
        layers: Mapping[int, LayerShape],
        max_tokens: int,
        beside: RoutingStep | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.layers = dict(layers)
        self.step = RoutingStep(modalities, [*layers.values()], max_tokens, beside)
        self.counter = LoadCounter(self.step)
        self.routers: dict[int, Observed] = {}
        self.step_watchers: list[Callable[[RoutingStep], None]] = []
        self.kernels: dict[int, str] = {}

    def counted(self) -> Sequence["ModelRouting"]:
        """This routing, and any that is counted beside it."""
        return [self]

    def begin_made_up_step(self, num_tokens: int) -> None:
        """Prepare the model so that the self-check's next step calls each router; most need nothing."""

    def end_step(self) -> None:
        """Count the step that has run, and clear it."""
        for watch in self.step_watchers:
            watch(self.step)
        self.counter.add(self.step)
        self.step.tokens.clear()

    def load(self) -> Mapping[str, Any]:
        """The load counted so far, in the form of the server's `ExpertLoad`."""
        return {"modalities": [*self.step.tokens.names], "layers": [*self.layers], **self.counter.load()}

    def reset_load(self) -> None:
        """Restart counting at zero: on CUDA vLLM warms up with made-up requests, which look real here."""
        self.counter.reset()

    def route_by(self, choice: RoutedBy) -> bool:
        """Route by this choice from the next step on. Returns whether that changes anything.

        Raises ValueError where the model is not `switchable`.
        """
        raise ValueError(f"{self.architecture} can only route by {self.routed_by}.")

    def change_thresholds(self, by_layer: ThresholdsByLayer) -> bool:
        """Route by these thresholds from the next step on. Returns whether that changes anything.

        Raises ValueError where the model is not `switchable`.
        """
        raise ValueError(f"{self.architecture} can only route by {self.routed_by}.")

    def reroute(self, routing: Mapping[str, Any] | None) -> None:
        """Route by other settings of the policies in force, from the next step of an eager engine on.

        They may not need more slots. None restores the model's own routing. Raises ValueError where no policy
        is in force.
        """
        raise ValueError(f"{self.architecture} can only route by {self.routed_by}.")

    @property
    def most_request_experts(self) -> int:
        """The most experts that a request may ask for its vision tokens; 0 where it may not ask."""
        return 0

    @abstractmethod
    def source(self) -> str:
        """The source of the routing: where it was set."""

    @abstractmethod
    def describe_layer(self, layer: int) -> Mapping[str, Any]:
        """`top_k`, `gate`, `policy` and `sources` of a layer, as in the server's `ServedLayer`."""

    def describe(self) -> Mapping[str, Any]:
        """The routing in force, in the form of the server's `ServedRouting`."""
        layers = [
            {
                "layer": layer,
                "experts": shape.experts,
                "kernel": self.kernels.get(layer, ""),
                **self.describe_layer(layer),
            }
            for layer, shape in self.layers.items()
        ]
        return {
            "source": self.source(),
            "in_force": self.routed_by,
            "switchable": self.switchable,
            "architecture": self.architecture,
            "modalities": [*self.step.tokens.names],
            "layers": layers,
            "not_supported": [*self.not_supported],
        }


class PolicyRouting(ModelRouting):
    """The routers of a model that requests one for each of its MoE layers while it is built."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        in_force: RoutingInForce,
        architecture: str,
        modalities: Sequence[str],
        top_k: int,
    ) -> None:
        scheduler = vllm_config.scheduler_config
        shapes = {
            layer: layer_shape(routing.policy, routing.num_experts)
            for layer, routing in in_force.layers.items()
        }
        super().__init__(architecture, modalities, shapes, scheduler.max_num_batched_tokens)
        if current_platform.is_cuda():
            self.step.write_by_kernel()
        self.in_force = in_force
        self._top_k = top_k
        by_request = in_force.experts_by_request_layer
        self.requests = (
            RequestLogits(by_request, self.step.tokens.requests, scheduler.max_num_seqs)
            if by_request
            else None
        )

    def router(self, layer: int, hidden_size: int) -> PolicyRouter:
        """The router of decoder layer `layer`. The model registers its `parameters`, and loads them."""
        routing = self.in_force.layers[layer]
        policy, num_experts = routing.policy, routing.num_experts
        parameters = router_parameters(policy, hidden_size, num_experts)
        request_gate = None
        if self.requests is not None and isinstance(policy, RequestPolicy):
            request_gate = self.requests.add_layer(layer, policy, dict(parameters.items()))
        place = [*self.layers].index(layer)
        router = router_class(policy, num_experts)(
            policy, num_experts, self.step, place, parameters, request_gate
        )
        self.routers[layer] = router
        return router

    def watch(self, runner: Any, embed: Callable[[Tensor], Tensor]) -> None:
        """Watch `runner`'s requests, if a policy in force needs them.

        `embed` gives token ids' embeddings.
        """
        if self.requests is not None or self.in_force.needs_whole_requests:
            watch_steps(runner, partial(self._begin_step, embed=embed))

    def _begin_step(self, step: StepRequests, embed: Callable[[Tensor], Tensor]) -> None:
        self.step.tokens.mark_requests(step.counts)
        if self.requests is not None:
            self.requests.begin_step(step, embed)

    def reroute(self, routing: Mapping[str, Any] | None) -> None:
        in_force = self.in_force
        if routing is not None:
            experts = {layer: shape.experts for layer, shape in self.layers.items()}
            in_force = choose_routing(None, routing, self._top_k, experts)
        for layer, router in self.routers.items():
            assert isinstance(router, PolicyRouter)  # `router` makes only these
            router.policy = in_force.layers[layer].policy

    @property
    def most_request_experts(self) -> int:
        return self.in_force.most_request_experts

    def source(self) -> str:
        return self.in_force.source

    def describe_layer(self, layer: int) -> Mapping[str, Any]:
        routing = self.in_force.layers[layer]
        return {
            "top_k": self._top_k,
            "gate": "softmax" + (", renormalised" if self._top_k > 1 else ""),
            "policy": routing.policy.model_dump(),
            "sources": dict(routing.sources),
        }


def router_parameters(policy: RoutingPolicy, hidden_size: int, num_experts: int) -> nn.ParameterDict:
    """The policy's parameters by name, for loading from a checkpoint."""
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
    """The router's class for `policy` on this platform."""
    if current_platform.is_cuda():
        from prismoe.model_plugins.moe_layer.gpu_router import FusedRouter, fused_routing_works

        if fused_routing_works(policy, num_experts):
            return FusedRouter
    return PolicyRouter


def runners_of(model: nn.Module) -> list[MoERunner]:
    """vLLM's MoE layers of a model, in the decoder's order."""
    return [module for module in model.modules() if isinstance(module, MoERunner)]


def kernel_class(runner: MoERunner) -> type:
    """vLLM's class that runs a layer's experts."""
    method: Any = runner.routed_experts.quant_method
    kernel = getattr(method, "moe_kernel", None)
    return type(method if kernel is None else kernel.fused_experts)


def kernel_name(runner: MoERunner) -> str:
    """The name of vLLM's class that runs a layer's experts."""
    return kernel_class(runner).__name__
