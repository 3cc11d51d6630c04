"""Chooses the experts' implementation of a MoE layer by platform."""

from typing import Any

from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.platforms import current_platform

from prismoe.model_plugins.moe_layer.router import PolicyRouter


def experts_options(
    activation: str, router: PolicyRouter, quant_config: QuantizationConfig | None
) -> dict[str, Any]:
    """The options for vLLM's MoE factory: experts that skip unused slots if possible, else vLLM's own."""
    if current_platform.is_cpu() and quant_config is None:
        from prismoe.model_plugins.moe_layer.experts.cpu_experts import CPUExperts

        return {
            # On CPU the factory refuses activations without a gate; CPUExperts sets the right one again.
            "activation": activation.removesuffix("_no_mul"),
            "routed_experts_cls": CPUExperts,
            "routed_experts_args": {"router": router, "activation": activation},
        }
    if current_platform.is_cuda() and not router.policy.uses_all_slots:
        from prismoe.model_plugins.moe_layer.experts.gpu_experts import GPURoutedExperts

        return {"activation": activation, "routed_experts_cls": GPURoutedExperts}
    return {"activation": activation}
