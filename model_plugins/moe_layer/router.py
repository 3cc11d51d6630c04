"""The vLLM router that applies a routing policy and counts its load.

On CPU the compiler looks into it, and routing becomes a part of the model's graph. On a GPU it runs inside
vLLM's MoE op, by fused kernels where they work (`prismoe.model_plugins.moe_layer.gpu_router`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from vllm.model_executor.layers.fused_moe.config import RoutingMethodType
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.platforms import current_platform

from prismoe.kernels.expert_load import LayerLoad, count_expert_load
from prismoe.kernels.pending_steps import PendingSteps
from prismoe.model_plugins.moe_layer.token_segments import TokenSegments
from prismoe.model_plugins.routing.policy import RouterInputs, RoutingPolicy


class PolicyRouter(BaseRouter):
    """Routes one MoE layer by `policy` and adds its load to `load_MC` (see `count_expert_load`).

    `segments` describe the running step; `parameters` are the policy's, by name.
    `request_gate` gives the logits of a policy that decides once a request.
    """

    observer: Callable[[Tensor, Tensor, Tensor, Tensor], None] | None = None
    """Called with the hidden states, logits, experts and weights of each step; what it makes of the weights
    is what counts. Of quantised experts on CPU it sees the steps of an eager engine only."""

    def __init__(
        self,
        policy: RoutingPolicy,
        num_experts: int,
        segments: TokenSegments,
        load_MC: Tensor,
        parameters: nn.ParameterDict,
        request_gate: nn.Module | None = None,
    ) -> None:
        super().__init__(top_k=policy.slots(num_experts), global_num_experts=num_experts)
        self.policy = policy
        self.gate_rows = policy.gate_rows(num_experts)
        self.request_gate = request_gate
        self.parameters: Any = parameters
        self._load_MC = load_MC
        self._kept = PendingSteps(load_MC)
        self._segments = segments

    @property
    def routing_method_type(self) -> RoutingMethodType:
        # vLLM's CPU kernels of quantised experts ask for a method by name, and then take these experts and
        # weights as they are. Elsewhere a kernel may route by itself, unless the method is Custom.
        return RoutingMethodType.Renormalize if current_platform.is_cpu() else RoutingMethodType.Custom

    def inputs(self, hidden_TD: Tensor, logits_TE: Tensor) -> RouterInputs:
        """What the policy sees of the running step."""
        tokens = self._segments.step(hidden_TD.shape[0])
        return RouterInputs(
            hidden_TD,
            logits_TE,
            tokens.segment_T,
            tokens.asked_T2,
            self.parameters,
            self.global_num_experts,
            tokens.is_text,
        )

    def decide(self, hidden_TD: Tensor, logits_TE: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Route and count the running step.

        Returns `weights_TA` (float32), `experts_TA` (int32), and whether all slots are known to be used.
        """
        step = self.inputs(hidden_TD, logits_TE)
        experts_TA, weights_TA, count_T, tail_T, confidence = self.policy.route(step)
        experts_TA = experts_TA.int().contiguous()
        load = experts_TA, count_T, tail_T, None if step.is_text else step.segment_T, confidence
        if torch.compiler.is_compiling() or not current_platform.is_cpu():
            count_expert_load(self._load_MC, *load)
        else:
            self._kept.keep(*load)
        all_used = count_T is None or self.policy.uses_all_slots
        return weights_TA.contiguous(), experts_TA, all_used

    def load(self) -> LayerLoad:
        """What was counted so far."""
        self._kept.count()
        return LayerLoad.read(self._load_MC, self.top_k)

    def reset_load(self) -> None:
        """Count from zero."""
        self._kept.forget()
        self._load_MC.zero_()

    def observed(
        self, hidden_TD: Tensor, logits_TE: Tensor, weights_TA: Tensor, experts_TA: Tensor
    ) -> Tensor:
        """The weights, as the observer leaves them where there is one. It sees as many slots in each step."""
        if self.observer is None:
            return weights_TA
        slots = weights_TA.shape[1]
        all_weights_TA, all_experts_TA = (
            pad(part, (0, self.top_k - slots)) for part in (weights_TA, experts_TA)
        )
        self.observer(hidden_TD, logits_TE, all_experts_TA, all_weights_TA)
        return all_weights_TA[:, :slots].contiguous()

    def _compute_routing(
        self,
        hidden_states: Tensor,
        router_logits: Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        weights_TA, experts_TA, _ = self.decide(hidden_states, router_logits)
        return self.observed(hidden_states, router_logits, weights_TA, experts_TA), experts_TA
