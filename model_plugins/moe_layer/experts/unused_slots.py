"""Which of vLLM's kernels may be given slots that a token does not use: on a GPU not all.

Such a slot repeats the token's first expert at weight 0. Kernels that sort pairs of a token and a slot by
expert give each pair a row of its own. FlashInfer's CUTLASS kernels give a token and an expert one row: for
the repeated slot they read what nobody wrote, and 0 times that may be NaN.
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
"""By class; those derived from these do, too. Read in vLLM 0.32."""
ROWS_BY_TOKEN = "allgather_reducescatter"
"""vLLM's own choice of how expert-parallel ranks exchange tokens: kernels get them as on one rank."""


def check_unused_slots(runner: MoERunner, policy: str) -> None:
    """Raise ValueError with a sentence where a layer's kernel can't run a policy that leaves slots unused."""
    if not current_platform.is_cuda():
        return
    kernel = kernel_class(runner)
    if ROW_FOR_EACH_SLOT.isdisjoint(parent.__name__ for parent in kernel.__mro__):
        raise ValueError(
            f"The policy {policy} leaves slots unused, and the kernel of layer {runner.layer_id} "
            f"({kernel.__name__}) may then read what nobody wrote: {_what_helps(runner)}."
        )


def _what_helps(runner: MoERunner) -> str:
    parallel = runner.moe_config.moe_parallel_config
    if parallel.use_batched_activation_format or parallel.use_moonep_kernels:
        # These sort tokens by expert before a kernel sees them, and take kernels of their own.
        return f"use --all2all-backend {ROWS_BY_TOKEN} in place of {parallel.all2all_backend}"
    if runner.moe_config.moe_backend == "triton":
        return "use --moe-backend marlin, or leave the policy out"
    return (
        "use --moe-backend triton, or for quantised experts that Triton has no kernel for, "
        "--moe-backend marlin"
    )
