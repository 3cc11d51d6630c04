"""A MoE layer's experts on CPU: an op that runs only the (token, expert) pairs that routing used.

On CPU an op may read its data, so unused slots cost nothing. vLLM calls such a kernel monolithic: it gets the
gate's logits and calls the router itself. The compiler sees the routing, but not the inside of the op.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.nn import functional
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.utils.torch_utils import direct_register_custom_op

from prismoe.kernels.ragged_experts import FixedExperts, OneExpert, flat_experts, sorted_experts
from prismoe.model_plugins.moe_layer.experts.skipping import kernel_of
from prismoe.model_plugins.moe_layer.router import PolicyRouter

WIDE = 512
"""From this hidden size on, experts without a gate run faster as plain products than with a made-up
gate."""


def _experts(
    hidden_TD: Tensor, logits_TE: Tensor, weights_TA: Tensor, experts_TA: Tensor, all_used: bool, layer: str
) -> Tensor:
    experts: CPUExperts = get_forward_context().no_compile_layers[layer].routed_experts
    return experts.observe_and_run(hidden_TD, logits_TE, weights_TA, experts_TA, all_used)


def _experts_fake(
    hidden_TD: Tensor, logits_TE: Tensor, weights_TA: Tensor, experts_TA: Tensor, all_used: bool, layer: str
) -> Tensor:
    return torch.empty_like(hidden_TD)


library = Library("prismoe", "FRAGMENT")  # its op lives as long as this object
direct_register_custom_op("experts", _experts, fake_impl=_experts_fake, target_lib=library)


class CPUExperts(RoutedExperts):
    """The weights of a layer's experts, which vLLM loads, and the function that runs them."""

    quant_method: "GatedExperts | PlainExperts"
    run: FixedExperts
    """The weighted sum of each token's experts, where slots may be unused."""
    run_all: FixedExperts
    """The same, where no slot is unused."""

    def __init__(
        self,
        layer_name: str,
        params_dtype: torch.dtype,
        moe_config: FusedMoEConfig,
        *args: Any,
        router: PolicyRouter,
        activation: str,
        **kwargs: Any,
    ) -> None:
        self.has_made_up_gate = activation.endswith("_no_mul") and moe_config.hidden_dim < WIDE
        if self.has_made_up_gate:
            kwargs["ckpt_up_proj_name"] = "made up"
        else:
            moe_config.activation = MoEActivation.from_str(activation)
        super().__init__(layer_name, params_dtype, moe_config, *args, **kwargs)
        self.router = router

    def _get_quant_method(
        self, prefix: str, quant_config: QuantizationConfig | None, moe_config: FusedMoEConfig
    ) -> "GatedExperts | PlainExperts":
        return GatedExperts(moe_config) if moe_config.is_act_and_mul else PlainExperts(moe_config)

    def observe_and_run(
        self, hidden_TD: Tensor, logits_TE: Tensor, weights_TA: Tensor, experts_TA: Tensor, all_used: bool
    ) -> Tensor:
        """The experts' output for a routed step, after the router's observer has seen it."""
        if self.router.observer is None:
            return (self.run_all if all_used else self.run)(hidden_TD, weights_TA, experts_TA)
        weights_TA = self.router.observed(hidden_TD, logits_TE, weights_TA, experts_TA)
        return self.run(hidden_TD, weights_TA, experts_TA)


class GatedExperts(UnquantizedFusedMoEMethod):
    """down(activation(gate(x)) · up(x)) by vLLM's own kernel, in its flat form."""

    is_monolithic = True

    def apply_monolithic(  # type: ignore[override]  # only CPUExperts have this method
        self, layer: CPUExperts, x: Tensor, router_logits: Tensor, input_ids: Tensor | None = None
    ) -> Tensor:
        routed = layer.router.decide(x, router_logits)
        if not torch.compiler.is_compiling():  # for a small model, an op costs more than it saves
            return layer.observe_and_run(x, router_logits, *routed)
        output_TD: Tensor = torch.ops.prismoe.experts(x, router_logits, *routed, layer.layer_name)
        return output_TD

    def process_weights_after_loading(self, layer: Any) -> None:
        if layer.has_made_up_gate:  # activation(up(x)) · 1
            width = layer.w2_weight.shape[-1]
            layer.w13_weight.data[:, width:] = 0
            layer.w13_bias.data[:, width:] = 1
        super().process_weights_after_loading(layer)
        torch.cpu._init_amx()  # vLLM's kernel assumes that the process may use AMX's tiles
        layer.run_all = kernel_of(layer)
        layer.run = partial(flat_experts, fixed_experts=layer.run_all)


class PlainExperts(GatedExperts):
    """down(activation(up(x))), both biased, by two oneDNN products per expert, in their sorted form.

    vLLM's CPU kernel has only gated forms. A made-up gate costs half as much again in time and memory;
    where the hidden size is small, that is less than these calls cost.
    """

    def __init__(self, moe: FusedMoEConfig) -> None:
        super(UnquantizedFusedMoEMethod, self).__init__(moe)  # skips vLLM's choice of a kernel
        self.unquantized_backend = UnquantizedMoeBackend.CPU

    def process_weights_after_loading(self, layer: Any) -> None:
        experts = [
            plain_expert(*weights)
            for weights in zip(layer.w13_weight, layer.w13_bias, layer.w2_weight, layer.w2_bias, strict=True)
        ]
        for weight in (layer.w13_weight, layer.w2_weight):
            weight.data = weight.data.new_empty(0)  # oneDNN keeps its own copies

        layer.run = layer.run_all = partial(sorted_experts, experts=experts)


def plain_expert(w1_FD: Tensor, b1_F: Tensor, w2_DF: Tensor, b2_D: Tensor) -> OneExpert:
    """An expert down(gelu(up(x))) with weights in oneDNN's layout; in float32 its rows are independent."""
    if w1_FD.dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return _unpacked_expert(w1_FD, b1_F, w2_DF, b2_D)
    reorder, linear = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
    packed_w1, packed_w2 = reorder(w1_FD.contiguous(), None), reorder(w2_DF.contiguous(), None)

    def expert(hidden_RD: Tensor) -> Tensor:
        if len(hidden_RD) == 1:  # oneDNN sums a single row in another order
            return expert(torch.cat([hidden_RD, hidden_RD]))[:1]
        hidden_RF = linear(hidden_RD, packed_w1, b1_F, "gelu", [], "tanh")
        output_RD: Tensor = linear(hidden_RF, packed_w2, b2_D, "none", [], "")
        return output_RD

    return expert


def _unpacked_expert(w1_FD: Tensor, b1_F: Tensor, w2_DF: Tensor, b2_D: Tensor) -> OneExpert:
    """The same in PyTorch, for bfloat16 on a CPU without AVX-512, where oneDNN lacks this layout."""

    def expert(hidden_RD: Tensor) -> Tensor:
        hidden_RF = functional.gelu(functional.linear(hidden_RD, w1_FD, b1_F), approximate="tanh")
        return functional.linear(hidden_RF, w2_DF, b2_D)

    return expert
