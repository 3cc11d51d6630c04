"""The vLLM kernels that can handle unused slots, by class."""

from contextlib import nullcontext

import pytest
from vllm.model_executor.layers.fused_moe.experts.cutlass_moe import CutlassExpertsFp8
from vllm.model_executor.layers.fused_moe.experts.deep_gemm_moe import DeepGemmExperts
from vllm.model_executor.layers.fused_moe.experts.flashinfer_cutlass_moe import FlashInferExperts
from vllm.model_executor.layers.fused_moe.experts.fused_batched_moe import BatchedTritonExperts
from vllm.model_executor.layers.fused_moe.experts.fused_humming_moe import HummingIndexedExperts
from vllm.model_executor.layers.fused_moe.experts.marlin_moe import MarlinExperts
from vllm.model_executor.layers.fused_moe.experts.triton_deep_gemm_moe import TritonOrDeepGemmExperts
from vllm.model_executor.layers.fused_moe.experts.triton_moe import TritonExperts, TritonWNA16Experts
from vllm.model_executor.layers.fused_moe.experts.trtllm_bf16_moe import TrtLlmBf16ExpertsModular
from vllm.platforms import current_platform

from prismoe.model_plugins.moe_layer.experts.gpu_experts import RaggedTritonExperts
from prismoe.model_plugins.moe_layer.experts.unused_slots import check_unused_slots
from tests.model_plugins.moe_layer.native_layers import kernel_of, moe_layer, parallel


@pytest.mark.parametrize(
    "experts",
    [
        TritonExperts,
        RaggedTritonExperts,
        TritonWNA16Experts,
        MarlinExperts,
        HummingIndexedExperts,
        DeepGemmExperts,
        TritonOrDeepGemmExperts,
    ],
)
def test_kernels_with_a_row_for_each_slot_can(experts: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current_platform, "is_cuda", lambda: True)
    check_unused_slots(moe_layer(3, **kernel_of(experts)), "ltdr")


@pytest.mark.parametrize("on_cuda", [True, False])
@pytest.mark.parametrize("experts", [FlashInferExperts, TrtLlmBf16ExpertsModular, CutlassExpertsFp8])
def test_others_cannot_on_cuda(experts: type, on_cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current_platform, "is_cuda", lambda: on_cuda)
    message = rf"The policy ltdr leaves slots unused, and the kernel of layer 3 \({experts.__name__}\) "
    with pytest.raises(ValueError, match=message) if on_cuda else nullcontext():
        check_unused_slots(moe_layer(3, **kernel_of(experts)), "ltdr")


@pytest.mark.parametrize(
    ("all2all", "moe_backend", "helps"),
    [
        (
            "deepep_low_latency",
            "triton",
            "use --all2all-backend allgather_reducescatter in place of deepep_low",
        ),
        ("nixl_ep", "auto", "use --all2all-backend allgather_reducescatter in place of nixl_ep"),
        ("moonep", "triton", "use --all2all-backend allgather_reducescatter in place of moonep"),
        ("deepep_high_throughput", "auto", "use --moe-backend triton, or"),
        ("allgather_reducescatter", "triton", "use --moe-backend marlin, or leave the policy out"),
    ],
)
def test_a_choice_that_is_already_made_is_not_advised(
    all2all: str, moe_backend: str, helps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_platform, "is_cuda", lambda: True)
    layer = moe_layer(3, **kernel_of(BatchedTritonExperts))
    layer.moe_config.moe_backend, layer.moe_config.moe_parallel_config = moe_backend, parallel(all2all)
    with pytest.raises(ValueError, match=f"unwritten memory: {helps}"):
        check_unused_slots(layer, "ltdr")
