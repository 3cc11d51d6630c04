"""A MoE layer's experts on CUDA: slots that a token does not use are left out by vLLM's own kernels.

vLLM's Triton experts drop an expert of -1 when they sort by expert, and so run no product for it. Its row of
the workspace is then never written; the final sum skips that row only where there is an expert map, which
vLLM has under expert parallelism, and which maps each expert to itself here. Nothing waits for the host.

That was read in vLLM 0.32, and in its CUDA code, for Triton experts without quantisation: gated or not, with
biases or without. vLLM's other kernels, and those of quantised experts, may take -1 for an expert: they get
the slots as the router gives them, at weight 0. Tested by Triton's interpreter; not yet run on a GPU.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts
from vllm.model_executor.layers.fused_moe.moe_output import UnfinalizedMoEOutput
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod


class GPUExperts(RoutedExperts):
    """vLLM's experts, without slots of weight 0 where vLLM chose its Triton kernels and no quantisation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        method = self.quant_method
        self.skips_unused = (
            isinstance(method, UnquantizedFusedMoEMethod) and method.experts_cls is TritonExperts
        )
        if self.skips_unused:
            self._expert_map = torch.arange(self.global_num_experts, dtype=torch.int32)

    def forward_modular(
        self, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, *shared: Any, **named: Any
    ) -> Tensor | UnfinalizedMoEOutput:
        """The weighted sum of each token's experts; `topk_weights` and `topk_ids` are `[T, A]`."""
        if self.skips_unused:
            topk_ids = topk_ids.masked_fill(topk_weights == 0, -1)
        return super().forward_modular(x, topk_weights, topk_ids, *shared, **named)
