"""A MoE layer's experts on CUDA: slots that a token does not use are skipped.

With few slots, vLLM's own Triton experts skip them. They drop expert -1 when they sort by expert, and so run
no product for it. Its row of the workspace then stays unwritten; the final sum skips that row only if there
is an expert map, which here maps each expert to itself. With many slots, prismoe's grouped product runs, with
a bounded workspace, if its results match plain PyTorch when the model is loaded. Neither waits for the host.
Under expert parallelism vLLM has its own map: its experts run unchanged, and compute unused slots at weight
0.

This follows from vLLM 0.32's code, including its CUDA code, for Triton experts without quantisation: gated or
not, with or without biases. vLLM's other kernels, and those of quantised experts, may treat -1 as an expert:
they get the slots as the router gives them, at weight 0, where that is correct (`unused_slots`). Tested by
Triton's interpreter; not yet run on a GPU.
"""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from vllm import envs
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEQuantConfig
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts
from vllm.model_executor.layers.fused_moe.modular_kernel import ExpertTokensMetadata
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.quantization import QuantizationConfig

from prismoe.kernels.triton.experts import MOST_ROWS, Activation, grouped_experts, workspace_rows
from prismoe.kernels.triton.experts_check import check_grouped_experts
from prismoe.model_plugins.moe_layer.kernel_check import kernel_works

FEW_SLOTS = 8
"""Up to this many slots vLLM's kernels run: it has tuned sizes for them, and a workspace of `[T, A, 2F]` is
what any model with 8 experts per token uses."""
GROUPED: dict[MoEActivation, Activation] = {
    MoEActivation.SILU: "silu",
    MoEActivation.GELU_TANH_NO_MUL: "gelu_tanh",
}
"""The activations that the grouped product supports."""


class GPURoutedExperts(RoutedExperts):
    """vLLM's experts, without slots of weight 0 where vLLM runs its Triton kernels without quantisation.

    It runs these unless --moe-backend names others; on its own, vLLM would use FlashInfer's on Blackwell. The
    name of this class must end with that of vLLM's class: compressed-tensors finds what it quantises by the
    class's name.
    """

    def __init__(
        self,
        layer_name: str,
        params_dtype: torch.dtype,
        moe_config: FusedMoEConfig,
        quant_config: QuantizationConfig | None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if quant_config is None and moe_config.moe_backend == "auto":
            moe_config.moe_backend = "triton"
        super().__init__(layer_name, params_dtype, moe_config, quant_config, *args, **kwargs)
        method = self.quant_method
        if self.use_ep:  # the rank has only some experts, and vLLM's map of them
            return
        if isinstance(method, UnquantizedFusedMoEMethod) and method.experts_cls is TritonExperts:
            method.experts_cls = RaggedTritonExperts
            self._expert_map = torch.arange(self.global_num_experts, dtype=torch.int32)


def use_in_all_models() -> None:
    """Make vLLM build its own models' MoE layers with these experts from now on."""
    if op_registry_oot.get(RoutedExperts.__name__) is not GPURoutedExperts:
        RoutedExperts.register_oot(GPURoutedExperts)


class RaggedTritonExperts(TritonExperts):
    """vLLM's Triton experts with few slots, and the grouped product with many.

    On a tensor-parallel rank both give the rank's part of the sum, which vLLM sums over the ranks. They add
    the rank's bias of the second product: the model loads it on one rank, and zeros on the others.
    """

    def __init__(self, moe_config: FusedMoEConfig, quant_config: FusedMoEQuantConfig) -> None:
        super().__init__(moe_config, quant_config)
        self._is_grouped = (
            moe_config.experts_per_token > FEW_SLOTS
            and not envs.VLLM_BATCH_INVARIANT  # its tiles, and so its sums, depend on the step's size
            and moe_config.activation in GROUPED
            and grouped_product_works(
                str(moe_config.device),
                moe_config.in_dtype,
                moe_config.num_local_experts,
                moe_config.is_act_and_mul,
            )
        )

    def workspace_shapes(
        self,
        M: int,
        N: int,
        K: int,
        topk: int,
        global_num_experts: int,
        local_num_experts: int,
        expert_tokens_meta: ExpertTokensMetadata | None,
        activation: MoEActivation,
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The shapes of vLLM's two workspaces and of the output, which may be in the first."""
        if not self._is_grouped:
            return super().workspace_shapes(
                M, N, K, topk, global_num_experts, local_num_experts, expert_tokens_meta, activation
            )
        width = self.adjust_N_for_activation(N, activation)
        return (0,), (workspace_rows(M, topk, MOST_ROWS), K + width), (M, K)

    def apply(
        self,
        output: Tensor,
        hidden_states: Tensor,
        w1: Tensor,
        w2: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        activation: MoEActivation,
        global_num_experts: int,
        expert_map: Tensor | None,
        a1q_scale: Tensor | None,
        a2_scale: Tensor | None,
        workspace13: Tensor,
        workspace2: Tensor,
        expert_tokens_meta: ExpertTokensMetadata | None,
        apply_router_weight_on_input: bool,
    ) -> None:
        """Write the weighted sum of each token's experts; `topk_weights` and `topk_ids` are `[T, A]`."""
        if not self._is_grouped:
            super().apply(
                output,
                hidden_states,
                w1,
                w2,
                topk_weights,
                topk_ids.masked_fill(topk_weights == 0, -1),
                activation,
                global_num_experts,
                expert_map,
                a1q_scale,
                a2_scale,
                workspace13,
                workspace2,
                expert_tokens_meta,
                apply_router_weight_on_input,
            )
            return
        grouped_experts(
            hidden_states.contiguous(),
            topk_weights,
            topk_ids,
            w1,
            w2,
            self.w1_bias,
            self.w2_bias,
            GROUPED[activation],
            workspace2,
            output,
        )


@cache
def grouped_product_works(device: str, dtype: torch.dtype, experts: int, is_gated: bool) -> bool:
    """Whether the grouped product runs on this device, and matches plain PyTorch."""
    return kernel_works(
        partial(check_grouped_experts, device, dtype, experts, is_gated),
        "grouped product of experts",
        "vLLM's kernels run, which take more memory",
    )
