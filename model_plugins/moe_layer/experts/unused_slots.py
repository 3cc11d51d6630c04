"""Checks that vLLM's kernel can handle slots that a token does not use: on a GPU not all can.

Such a slot repeats the token's first expert at weight 0. Kernels that sort pairs of a token and a slot by
expert give each pair its own row. FlashInfer's CUTLASS kernels give a token and an expert one row: for the
repeated slot they read unwritten memory, and 0 times that may be NaN.
"""

from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.platforms import current_platform

from prismoe.model_plugins.moe_layer.model_routing import kernel_class

ROW_FOR_EACH_SLOT = {
    "TritonExperts",
    "MarlinExperts",
    "HummingIndexedExperts",
    "DeepGemmExperts",
    "TritonOrDeepGemmExperts",
}
"""The kernels' classes; derived classes count, too. From vLLM 0.32's code."""
ROWS_BY_TOKEN = "allgather_reducescatter"
"""vLLM's default exchange of tokens between expert-parallel ranks: kernels get tokens as on one rank."""


def check_unused_slots(runner: MoERunner, policy: str) -> None:
    """Raise ValueError where a layer's kernel can't run a policy that leaves slots unused."""
    if not current_platform.is_cuda():
        return
    kernel = kernel_class(runner)
    if ROW_FOR_EACH_SLOT.isdisjoint(parent.__name__ for parent in kernel.__mro__):
        raise ValueError(
            f"The policy {policy} leaves slots unused, and the kernel of layer {runner.layer_id} "
            f"({kernel.__name__}) would then read unwritten memory: {_remedy(runner)}."
        )


def _remedy(runner: MoERunner) -> str:
    parallel = runner.moe_config.moe_parallel_config
    if parallel.use_batched_activation_format or parallel.use_moonep_kernels:
        # These sort tokens by expert before a kernel sees them, and have their own kernels.
        return f"use --all2all-backend {ROWS_BY_TOKEN} in place of {parallel.all2all_backend}"
    if runner.moe_config.moe_backend == "triton":
        return "use --moe-backend marlin, or leave the policy out"
    return (
        "use --moe-backend triton, or for quantised experts that Triton has no kernel for, "
        "--moe-backend marlin"
    )
