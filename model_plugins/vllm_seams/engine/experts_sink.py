"""Gets the experts chosen by a kernel that routes by itself, from vLLM's sink if it supports that."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEExpertsMonolithic
from vllm.model_executor.layers.fused_moe.routed_experts_capturer import RoutedExpertsSink
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [
    Needed(
        "vllm.model_executor.layers.fused_moe.routed_experts_capturer:RoutedExpertsSink.__init__",
        ("moe_config", "capture_fn"),
        attributes=("capture_fn",),
    ),
    Needed(
        "vllm.model_executor.layers.fused_moe.modular_kernel"
        ":FusedMoEExpertsMonolithic.supports_routing_replay_capture"
    ),
]


def routes_by_itself(runner: MoERunner) -> bool:
    """Whether a layer's kernel gets the logits, and vLLM's router is never called."""
    return bool(runner.routed_experts.quant_method.is_monolithic)


def has_sink(runner: MoERunner) -> bool:
    """Whether such a kernel can report the experts that it chose."""
    experts = _experts(runner)
    return isinstance(experts, FusedMoEExpertsMonolithic) and experts.supports_routing_replay_capture()


def put_sink(runner: MoERunner, report: Callable[[Tensor], None]) -> None:
    """Call `report` with the experts of each step from now on, and then any earlier listener."""
    experts, before = _experts(runner), runner.routed_experts.routing_sink

    def capture(experts_TA: Tensor) -> None:
        report(experts_TA)
        if before is not None:
            before.capture_fn(experts_TA)

    runner.routed_experts.routing_sink = RoutedExpertsSink(experts.moe_config, capture)


def _experts(runner: MoERunner) -> Any:
    kernel: Any = getattr(runner.routed_experts.quant_method, "moe_kernel", None)
    return None if kernel is None else getattr(kernel.impl, "fused_experts", None)
