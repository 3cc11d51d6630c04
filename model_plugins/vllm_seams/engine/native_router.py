"""Gets the decisions of vLLM's own routers, before vLLM maps experts to ranks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.router.fused_moe_router import FusedMoERouter

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [
    Needed(
        "vllm.model_executor.layers.fused_moe.router.base_router:BaseRouter._select_experts",
        ("hidden_states", "router_logits", "topk_indices_dtype", "input_ids"),
        attributes=("_compute_routing", "_apply_eplb_mapping"),
    ),
    Needed(
        "vllm.model_executor.layers.fused_moe.router.fused_topk_bias_router"
        ":FusedTopKBiasRouter._compute_routing",
        attributes=("_hash_indices_table", "bias_vl"),
    ),
    Needed(
        "vllm.model_executor.models.gemma4:Gemma4Router.routing_function", attributes=("per_expert_scale",)
    ),
]


def watch_routing(router: BaseRouter, report: Callable[[Tensor, Tensor, Tensor, Tensor], None]) -> None:
    """Call `report` with the hidden states, logits, weights and experts of each step from now on."""
    compute = router._compute_routing

    def compute_and_report(
        hidden_states: Tensor,
        router_logits: Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        weights_TA, experts_TA = compute(hidden_states, router_logits, indices_type, input_ids=input_ids)
        report(hidden_states, router_logits, weights_TA, experts_TA)
        return weights_TA, experts_TA

    instance: Any = router
    instance._compute_routing = compute_and_report


def replace_routing(
    router: BaseRouter, decide: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    """Replace a step's weights and experts by those of `decide`, which gets what `watch_routing` reports."""
    native = router._compute_routing

    def compute(
        hidden_states: Tensor,
        router_logits: Tensor,
        indices_type: torch.dtype | None,
        *,
        input_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        chosen = native(hidden_states, router_logits, indices_type, input_ids=input_ids)
        return decide(hidden_states, router_logits, *chosen)

    instance: Any = router
    instance._compute_routing = compute


def scale_of_experts(routing_function: object) -> Tensor | None:
    """The factors of the experts' weights in Gemma-4's own function; None for other functions."""
    owner = getattr(routing_function, "__self__", None)
    return getattr(owner, "per_expert_scale", None)


def chooses_by_tokens(router: FusedMoERouter) -> bool:
    """Whether a router looks experts up by token id, or has a bias for image tokens, as DeepSeek-V4's do."""
    seen: Any = router
    return (
        getattr(seen, "_hash_indices_table", None) is not None or getattr(seen, "bias_vl", None) is not None
    )
