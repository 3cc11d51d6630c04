"""Skips unused slots on CPU in models that vLLM has built.

The kernel that vLLM chose stays. It gets only the used pairs, where that saves more time than it costs
(`prismoe.kernels.ragged_experts`).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.utils.torch_utils import direct_register_custom_op

from prismoe.kernels.ragged_experts import FixedExperts, flat_experts

logger = init_logger("vllm.prismoe.skipping")


def _used_experts(hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor, layer: str) -> Tensor:
    run: FixedExperts = get_forward_context().no_compile_layers[layer].routed_experts.run_used
    return run(hidden_TD, weights_TA, experts_TA)


def _used_experts_fake(hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor, layer: str) -> Tensor:
    return torch.empty_like(hidden_TD)


library = Library("prismoe", "FRAGMENT")  # its op lives as long as this object
direct_register_custom_op("used_experts", _used_experts, fake_impl=_used_experts_fake, target_lib=library)


def skip_unused_slots(runner: MoERunner) -> None:
    """Make a layer's kernel skip pairs of weight 0. Quantised experts still run all pairs."""
    layer: Any = runner.routed_experts
    if not isinstance(layer.quant_method, UnquantizedFusedMoEMethod):
        logger.warning_once(
            "These experts are quantised, so skipped experts are still computed: a policy saves no time here."
        )
        return
    layer.run_used = partial(flat_experts, fixed_experts=kernel_of(layer))

    def apply(
        output: Tensor, hidden_states: Tensor, topk_weights: Tensor, topk_ids: Tensor, **_: object
    ) -> None:
        output.copy_(torch.ops.prismoe.used_experts(hidden_states, topk_weights, topk_ids, layer.layer_name))

    kernel: Any = layer.quant_method.moe_kernel
    kernel.fused_experts.apply = apply


def kernel_of(layer: Any) -> FixedExperts:
    """The kernel that vLLM chose for a layer's experts, with the weights that it has now."""
    apply: Any = layer.quant_method.moe_kernel.fused_experts.apply

    def fixed_experts(hidden_TD: Tensor, weights_TA: Tensor, experts_TA: Tensor) -> Tensor:
        output_TD = torch.empty_like(hidden_TD)
        apply(
            output=output_TD,
            hidden_states=hidden_TD,
            w1=layer.w13_weight,
            w2=layer.w2_weight,
            topk_weights=weights_TA,
            topk_ids=experts_TA,
            activation=layer.activation,
            global_num_experts=layer.global_num_experts,
            expert_map=None,
            a1q_scale=None,
            a2_scale=None,
            workspace13=output_TD,
            workspace2=output_TD,
            expert_tokens_meta=None,
            apply_router_weight_on_input=False,
        )
        return output_TD

    return fixed_experts
