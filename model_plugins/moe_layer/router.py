"""The vLLM router that applies a routing policy and writes its decisions to the step's state.

On CPU it is compiled, and routing becomes a part of the model's graph. On a GPU it runs inside vLLM's MoE op,
by fused kernels where they work (`prismoe.model_plugins.moe_layer.gpu_router`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from vllm.model_executor.layers.fused_moe.config import RoutingMethodType
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.platforms import current_platform

from prismoe.kernels.expert_load import LayerShape
from prismoe.kernels.routing import TEXT
from prismoe.model_plugins.moe_layer.step import RoutingStep
from prismoe.model_plugins.routing.gate import SOFTMAX, Gate
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, RoutingPolicy
from prismoe.model_plugins.routing.request_policy import RequestPolicy

Observer = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Called with the hidden states, logits, experts and weights of a layer's step."""


class PolicyRouter(BaseRouter):
    """Routes one MoE layer by `policy`.

    `step` is the running step's state, in which this layer has the place `place`; `parameters` are the
    policy's, by name. `request_gate` gives the logits of a policy that decides once per request.
    """

    gate: Gate = SOFTMAX
    observer: Observer | None = None
    """The observer sees each step, and may change the weights in place. With quantised experts on CPU it only
    sees the steps of an eager engine."""

    def __init__(
        self,
        policy: RoutingPolicy,
        num_experts: int,
        step: RoutingStep,
        place: int,
        parameters: nn.ParameterDict,
        request_gate: nn.Module | None = None,
    ) -> None:
        super().__init__(top_k=policy.slots(num_experts), global_num_experts=num_experts)
        self.policy = policy
        self.gate_rows = policy.gate_rows(num_experts)
        self.request_gate = request_gate
        self.parameters: Any = parameters
        self._step, self._place = step, place

    @property
    def routing_method_type(self) -> RoutingMethodType:
        # vLLM's CPU kernels of quantised experts require a known method, and then use these experts and
        # weights unchanged. Elsewhere a kernel may route by itself, unless the method is Custom.
        return RoutingMethodType.Renormalize if current_platform.is_cpu() else RoutingMethodType.Custom

    def inputs(self, hidden_TD: Tensor, logits_TE: Tensor) -> RouterInputs:
        """The policy's inputs for the running step."""
        tokens = self._step.tokens.seen(hidden_TD.shape[0])
        return RouterInputs(
            hidden_TD,
            logits_TE,
            tokens.segment_T,
            tokens.asked_T2,
            self.parameters,
            self.global_num_experts,
            tokens.is_text,
            request_T=tokens.request_T,
        )

    def route(self, inputs: RouterInputs) -> Routing:
        """The policy's decision."""
        return self.policy.route(inputs)

    def decide(self, hidden_TD: Tensor, logits_TE: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Route the running step, and record the decision.

        Returns `weights_TA` (float32), `experts_TA` (int32), and whether all slots are known to be used.
        """
        experts_TA, weights_TA, count_T, tail_T, confidence = self.route(self.inputs(hidden_TD, logits_TE))
        experts_TA = experts_TA.int().contiguous()
        self._step.write(self._place, experts_TA, weights_TA, count_T, tail_T, confidence)
        return weights_TA.contiguous(), experts_TA, count_T is None or self.policy.uses_all_slots

    def observed(
        self, hidden_TD: Tensor, logits_TE: Tensor, weights_TA: Tensor, experts_TA: Tensor
    ) -> Tensor:
        """The weights after the observer, if any. It sees the same number of slots in each step."""
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


def layer_shape(policy: RoutingPolicy, num_experts: int, gate: Gate = SOFTMAX) -> LayerShape:
    """The shape of a layer that routes by `policy`, from a trial with a few tokens."""
    with torch.device("cpu"):
        bias_E = None if gate.bias_E is None else gate.bias_E.cpu()
        inputs = trial_inputs(policy, num_experts, [0, 0, TEXT])
        routing = policy.route(inputs._replace(gate=gate._replace(bias_E=bias_E)))
    confidence = routing.confidence
    return LayerShape(
        num_experts,
        policy.slots(num_experts),
        scored=0 if confidence is None else confidence.logits_TE.shape[1],
        has_scores=confidence is not None and confidence.scores_TE is not None,
        uses_all_slots=policy.uses_all_slots,
        has_tails=routing.given_tail_T is not None,
    )


def trial_inputs(
    policy: RoutingPolicy, num_experts: int, segments: Sequence[int], hidden_size: int = 64
) -> RouterInputs:
    """Random inputs for a trial of a policy, on the default device; the same numbers on every device."""
    generator = torch.Generator(device="cpu").manual_seed(0)

    def values(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
        return drawn.to(torch.get_default_device())

    segment_T = torch.tensor(segments)
    by_request = isinstance(policy, RequestPolicy)
    return RouterInputs(
        hidden_TD=values(len(segments), hidden_size),
        logits_TE=values(len(segments), num_experts if by_request else policy.gate_rows(num_experts)),
        segment_T=segment_T,
        asked_T2=values(len(segments), 2).abs().int() * (segment_T >= 0)[:, None],
        parameters={
            name: values(*shape).abs().add(0.5)  # a temperature must be positive
            for name, shape in policy.parameters(hidden_size, num_experts).items()
        },
        num_experts=num_experts,
        request_T=torch.zeros_like(segment_T),
    )
