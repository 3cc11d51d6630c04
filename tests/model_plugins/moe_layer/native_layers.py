"""vLLM MoE layers with the parts that policy `native` uses."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from vllm.model_executor.layers.fused_moe.config import FusedMoEParallelConfig
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter


def moe_layer(layer_id: int = 0, router: Any = None, **experts: Any) -> Any:
    """The MoE layer of a decoder layer.

    Its default gate is a plain softmax. `experts` are vLLM's settings.
    """
    settings = {
        "scoring_func": "softmax",
        "renormalize": False,
        "use_grouped_topk": False,
        "num_expert_group": None,
        "topk_group": None,
        "e_score_correction_bias": None,
        "routed_scaling_factor": 1.0,
        "custom_routing_function": None,
        "quant_method": SimpleNamespace(is_monolithic=False),
    } | experts
    return SimpleNamespace(
        layer_id=layer_id,
        do_naive_dispatch_combine=False,
        moe_config=SimpleNamespace(
            is_sequence_parallel=False,
            moe_backend="auto",
            moe_parallel_config=parallel("deepep_v2", ep=False),
        ),
        router=router or Mock(BaseRouter),
        routed_experts=SimpleNamespace(**settings),
    )


def parallel(all2all_backend: str, ep: bool = True) -> FusedMoEParallelConfig:
    """Settings of two data-parallel ranks. With `ep` their experts are distributed."""
    sizes = {"tp_size": 1, "pcp_size": 1, "dp_size": 2, "ep_size": 2 if ep else 1, "sp_size": 1}
    ranks = dict.fromkeys(["tp_rank", "pcp_rank", "dp_rank", "ep_rank"], 0)
    return FusedMoEParallelConfig(
        **sizes, **ranks, use_ep=ep, all2all_backend=all2all_backend, enable_eplb=False
    )


def moe_layers(*layer_ids: int) -> list[Any]:
    """A layer for each of these places in the decoder."""
    return [moe_layer(layer_id) for layer_id in layer_ids]


def kernel_of(experts: type) -> dict[str, Any]:
    """The settings of a layer whose experts run on a kernel of this class."""
    held = SimpleNamespace(fused_experts=object.__new__(experts))
    return {"quant_method": SimpleNamespace(is_monolithic=False, moe_kernel=held)}
