"""The MoE feed-forward layer of a Phi decoder: gate, routing policy, experts."""

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.platforms import current_platform

from prismoe.model_plugins.router import PolicyRouter


def expert_activation(hidden_act: str) -> str:
    """vLLM's name for Phi's activation: non-gated, except on CPU, whose kernel has gated forms only.

    There the experts get a gate's partner that is 1 for every input (`constant_partner`).
    """
    if hidden_act != "gelu_new":
        raise ValueError(
            f"hidden_act is {hidden_act!r} in the checkpoint's config; Phi experts use 'gelu_new'."
        )
    return "gelu_tanh" if current_platform.is_cpu() else "gelu_tanh_no_mul"


def constant_partner(width: int, hidden: int) -> dict[str, Tensor]:
    """Weight and bias of a projection whose output is 1, so that a gated kernel gives gelu(x) · 1."""
    return {"weight": torch.zeros(width, hidden), "bias": torch.ones(width)}


class PhiMoE(nn.Module):
    """Experts of two biased layers, chosen per token by `router`."""

    def __init__(
        self,
        hidden_size: int,
        expert_width: int,
        hidden_act: str,
        num_experts: int,
        router: PolicyRouter,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        # The authors' gate computes in float32 whatever the model's dtype.
        self.gate = ReplicatedLinear(
            hidden_size, num_experts, bias=False, params_dtype=torch.float32, prefix=f"{prefix}.gate"
        )
        self.experts = FusedMoEFactory(
            num_experts=num_experts,
            top_k=router.top_k,
            hidden_size=hidden_size,
            intermediate_size=expert_width,
            quant_config=quant_config,
            router=router,
            activation=expert_activation(hidden_act),
            has_bias=True,
            ckpt_names=("fc1", "fc2", "partner"),
            router_logits_dtype=torch.float32,
            prefix=f"{prefix}.experts",
        )

    def forward(self, hidden_TD: Tensor) -> Tensor:
        logits_TE, _ = self.gate(hidden_TD.float())
        output_TD: Tensor = self.experts(hidden_TD, logits_TE)
        return output_TD
