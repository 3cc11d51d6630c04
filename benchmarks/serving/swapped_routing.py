"""Switches one eager engine on CPU between routings by swapping the routers of its MoE layers.

The rest of the model does not change: even under vLLM's own routing it marks which tokens belong to images.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from prismoe.model_plugins.moe_layer.load_counter import LoadCounter
from prismoe.model_plugins.moe_layer.model_routing import ModelRouting
from prismoe.model_plugins.moe_layer.router import PolicyRouter
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.routing.policies.ltdr import LTDR
from prismoe.model_plugins.routing.policies.topk import TopK
from prismoe.model_plugins.routing.policy import RoutingPolicy

VLLMS_OWN, TOP_K, UNCOUNTED = "vLLM's own router and experts", "topk", "topk, not counted"


@dataclass
class TimedRouting:
    """A routing: the attributes to swap for it, and the counts while it was in force."""

    model: ModelRouting
    swaps: list[AbstractContextManager[Any]] = field(default_factory=list)
    pairs: int = 0  # (token, expert) pairs that were used
    experts_seconds: float = 0.0  # CPU seconds

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Route the engine like this in the block."""
        with ExitStack() as stack:
            for swap in self.swaps:
                stack.enter_context(swap)
            self.model.reset_load()
            yield
            used = self.model.load()["expert_tokens"]
            self.pairs += sum(tokens for layer in used for modality in layer for tokens in modality)

    def timed(self, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`run`, with its time added to `experts_seconds`."""

        def timed_run(*step: Any) -> Tensor:
            start = time.process_time()
            output = run(*step)
            self.experts_seconds += time.process_time() - start
            return output

        return timed_run


def routings(model: Any) -> dict[str, TimedRouting]:
    """The routings by name, for a model that is served with `ltdr`. All of them use its k.

    Raises ValueError if vLLM has no experts to compare the model's with.
    """
    layers = [module for module in model.modules() if isinstance(module, MoERunner)]
    if not layers or not all(hasattr(layer.routed_experts, "observe_and_run") for layer in layers):
        raise ValueError(
            "This model does not run prismoe's experts: give a MoE model that is not quantised, on CPU."
        )
    if not all(layer.routed_experts.quant_method.moe_kernel for layer in layers):
        raise ValueError(
            "vLLM has no CPU kernel for experts without a gate: give a model whose experts have a gate, "
            "or whose hidden size is below 512."
        )
    experts: Any = layers[0].routed_experts
    k = experts.router.policy.model_dump(include={"top_k", "norm_topk_prob"})
    uncounted = _prismoes(model, layers, TopK(**k))
    uncounted.swaps.append(patch.object(RoutingStep, "write", lambda *routed: None))
    uncounted.swaps.append(patch.object(LoadCounter, "add", lambda *step: None))
    return {
        VLLMS_OWN: _vllms_own(model, layers, **k),
        "vLLM's own, once more": _vllms_own(model, layers, **k),
        TOP_K: _prismoes(model, layers, TopK(**k)),
        UNCOUNTED: uncounted,
        "ltdr, 4 experts for tail tokens": _prismoes(model, layers, LTDR(**k, tail_experts=4)),
        "ltdr, 2 for tail, 1 for other vision": _prismoes(
            model, layers, LTDR(**k, tail_experts=2, head_experts=1)
        ),
    }


def _vllms_own(model: Any, layers: list[MoERunner], top_k: int, norm_topk_prob: bool) -> TimedRouting:
    """vLLM's router and kernel as vLLM calls them. A gate that prismoe added stays: the kernel needs one."""
    routing = TimedRouting(model.routing)
    routing.swaps.append(patch.object(LoadCounter, "add", lambda *step: None))
    for layer in layers:
        router = CPURouter(top_k, layer.routed_experts.global_num_experts, renormalize=norm_topk_prob)
        routing.swaps.append(patch.object(layer, "router", router))
        routing.swaps.append(patch.object(layer.routed_experts.quant_method, "is_monolithic", False))
    return routing


def _prismoes(model: Any, layers: list[MoERunner], policy: RoutingPolicy) -> TimedRouting:
    routing = TimedRouting(model.routing)
    for place, layer in enumerate(layers):
        experts: Any = layer.routed_experts
        num_experts = experts.global_num_experts
        router = PolicyRouter(policy, num_experts, model.routing.step, place, nn.ParameterDict())
        routing.swaps.append(patch.object(experts, "router", router))
        routing.swaps.append(patch.object(experts, "observe_and_run", routing.timed(experts.observe_and_run)))
    return routing
