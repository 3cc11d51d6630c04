"""The vLLM router that applies a routing policy: one op, opaque to the compiler."""

import torch
from torch import Tensor
from torch.library import Library
from vllm.model_executor.layers.fused_moe.config import RoutingMethodType
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.utils.torch_utils import direct_register_custom_op

from prismoe.kernels.expert_load import count_expert_load
from prismoe.model_plugins.routing.policy import RoutingPolicy
from prismoe.model_plugins.routing.registry import policy_from_json


def _route(
    hidden_TD: Tensor, logits_TE: Tensor, segments: Tensor, load_MC: Tensor, policy: str
) -> tuple[Tensor, Tensor]:
    segment_T = segments[: logits_TE.shape[0]]
    assert segment_T.shape[0] == logits_TE.shape[0], "the step holds more tokens than the segment buffer"
    routing = policy_from_json(policy).route(hidden_TD, logits_TE, segment_T)
    count_expert_load(load_MC, routing.experts_TA, routing.count_T, routing.tail_T, segment_T)
    return routing.weights_TA, routing.experts_TA.int()


def _route_fake(
    hidden_TD: Tensor, logits_TE: Tensor, segments: Tensor, load_MC: Tensor, policy: str
) -> tuple[Tensor, Tensor]:
    shape_TA = (logits_TE.shape[0], policy_from_json(policy).slots(logits_TE.shape[1]))
    return logits_TE.new_empty(shape_TA, dtype=torch.float32), logits_TE.new_empty(
        shape_TA, dtype=torch.int32
    )


_library = Library("prismoe", "FRAGMENT")  # the op lives as long as this object
direct_register_custom_op(
    "route", _route, mutates_args=["load_MC"], fake_impl=_route_fake, target_lib=_library
)


class PolicyRouter(BaseRouter):
    """Routes one MoE layer by `policy` and adds its load to `load_MC` (see `count_expert_load`)."""

    def __init__(self, policy: RoutingPolicy, num_experts: int, segments: Tensor, load_MC: Tensor) -> None:
        super().__init__(top_k=policy.slots(num_experts), global_num_experts=num_experts)
        self._policy = policy.model_dump_json()
        self._segments = segments
        self._load_MC = load_MC

    @property
    def routing_method_type(self) -> RoutingMethodType:
        return RoutingMethodType.Custom

    def _compute_routing(
        self,
        hidden_states: Tensor,
        router_logits: Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        weights_TA, experts_TA = torch.ops.prismoe.route(
            hidden_states, router_logits, self._segments, self._load_MC, self._policy
        )
        return weights_TA, experts_TA
