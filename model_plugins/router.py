"""The vLLM router that applies a routing policy, and its op, opaque to the compiler.

On CPU `cpu_experts` routes inside an op of its own; elsewhere, and for quantised experts, vLLM calls the
router.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.library import Library
from torch.nn.functional import pad
from vllm.model_executor.layers.fused_moe.config import RoutingMethodType
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.platforms import current_platform
from vllm.utils.torch_utils import direct_register_custom_op

from prismoe.kernels.expert_load import EXTRA_COLUMNS, count_expert_load
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy
from prismoe.model_plugins.routing.registry import policy_from_json


def _route_and_count(
    hidden_TD: Tensor,
    logits_TE: Tensor,
    segments: Tensor,
    asked: Tensor,
    load_MC: Tensor,
    parameters: list[Tensor],
    policy: str,
) -> Routing:
    step = _inputs(hidden_TD, logits_TE, segments, asked, load_MC, parameters, policy)
    routing = policy_from_json(policy).route(step)
    count_expert_load(load_MC, routing.experts_TA, routing.count_T, routing.tail_T, step.segment_T)
    return routing


def _inputs(
    hidden_TD: Tensor,
    logits_TE: Tensor,
    segments: Tensor,
    asked: Tensor,
    load_MC: Tensor,
    parameters: list[Tensor],
    policy: str,
) -> RouterInputs:
    num_tokens, hidden_size = hidden_TD.shape
    num_experts = load_MC.shape[1] - EXTRA_COLUMNS
    segment_T = segments[:num_tokens]
    assert segment_T.shape[0] == num_tokens, "the step holds more tokens than the segment buffer"
    names = _parameter_names(policy, hidden_size, num_experts)
    return RouterInputs(
        hidden_TD,
        logits_TE,
        segment_T,
        asked[:num_tokens],
        dict(zip(names, parameters, strict=True)),
        num_experts,
    )


def _route(
    hidden_TD: Tensor,
    logits_TE: Tensor,
    segments: Tensor,
    asked: Tensor,
    load_MC: Tensor,
    parameters: list[Tensor],
    policy: str,
) -> tuple[Tensor, Tensor]:
    routing = _route_and_count(hidden_TD, logits_TE, segments, asked, load_MC, parameters, policy)
    return _in_slots(routing, policy_from_json(policy).slots(load_MC.shape[1] - EXTRA_COLUMNS))


def _in_slots(routing: Routing, slots: int) -> tuple[Tensor, Tensor]:
    """Weights and experts in all slots, as vLLM's kernels read them: whole, and experts in int32."""
    unused = (0, slots - routing.experts_TA.shape[1])  # on CPU, the slots that no token of the step uses
    return pad(routing.weights_TA, unused).contiguous(), pad(routing.experts_TA.int(), unused).contiguous()


def _route_fake(
    hidden_TD: Tensor,
    logits_TE: Tensor,
    segments: Tensor,
    asked: Tensor,
    load_MC: Tensor,
    parameters: list[Tensor],
    policy: str,
) -> tuple[Tensor, Tensor]:
    slots = policy_from_json(policy).slots(load_MC.shape[1] - EXTRA_COLUMNS)
    shape_TA = (hidden_TD.shape[0], slots)
    return hidden_TD.new_empty(shape_TA, dtype=torch.float32), hidden_TD.new_empty(
        shape_TA, dtype=torch.int32
    )


@lru_cache
def _parameter_names(policy: str, hidden_size: int, num_experts: int) -> tuple[str, ...]:
    return tuple(policy_from_json(policy).parameters(hidden_size, num_experts))


library = Library("prismoe", "FRAGMENT")  # its ops live as long as this object
direct_register_custom_op(
    "route", _route, mutates_args=["load_MC"], fake_impl=_route_fake, target_lib=library
)


class PolicyRouter(BaseRouter):
    """Routes one MoE layer by `policy` and adds its load to `load_MC` (see `count_expert_load`).

    `segments` and `asked` are the buffers of `TokenSegments`; `parameters` are the policy's, by name.
    """

    observer: Callable[[Tensor, Tensor, Tensor, Tensor], None] | None = None
    """Called with the hidden states, logits, experts and weights of each step of an eager engine; what it
    makes of the weights is what counts."""

    def __init__(
        self,
        policy: RoutingPolicy,
        num_experts: int,
        segments: Tensor,
        asked: Tensor,
        load_MC: Tensor,
        parameters: nn.ParameterDict,
    ) -> None:
        super().__init__(top_k=policy.slots(num_experts), global_num_experts=num_experts)
        self.gate_rows = policy.gate_rows(num_experts)
        self.parameters = parameters
        self._parameter_list: list[Tensor] = list(parameters.values())
        self.policy = policy
        self._policy_json = policy.model_dump_json()
        self._segments = segments
        self._asked = asked
        self.load_MC = load_MC

    @property
    def routing_method_type(self) -> RoutingMethodType:
        # vLLM's CPU kernels of quantised experts ask for a method by name, and then take these experts and
        # weights as they are. Elsewhere a kernel may route by itself, unless the method is Custom.
        return RoutingMethodType.Renormalize if current_platform.is_cpu() else RoutingMethodType.Custom

    def decide(self, hidden_TD: Tensor, logits_TE: Tensor) -> Routing:
        """Route and count the running step, inside an op that the compiler does not look into."""
        routing = _route_and_count(hidden_TD, logits_TE, *self._step)
        if self.observer is not None:
            weights_TA, experts_TA = _in_slots(routing, self.top_k)
            self.observer(hidden_TD, logits_TE, experts_TA, weights_TA)
            routing = routing._replace(experts_TA=experts_TA, weights_TA=weights_TA)
        return routing

    def inputs(self, hidden_TD: Tensor, logits_TE: Tensor) -> RouterInputs:
        """What the policy sees of the running step."""
        return _inputs(hidden_TD, logits_TE, *self._step)

    @property
    def _step(self) -> tuple[Tensor, Tensor, Tensor, list[Tensor], str]:
        return self._segments, self._asked, self.load_MC, self._parameter_list, self._policy_json

    def _compute_routing(
        self,
        hidden_states: Tensor,
        router_logits: Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        weights_TA, experts_TA = torch.ops.prismoe.route(hidden_states, router_logits, *self._step)
        if self.observer is not None:
            self.observer(hidden_states, router_logits, experts_TA, weights_TA)
        return weights_TA, experts_TA
