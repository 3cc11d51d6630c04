"""The MoE feed-forward layer: gate, routing policy, experts."""

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.layer import FusedMoEFactory
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.quantization import QuantizationConfig

from prismoe.model_plugins.models.moe_llava.families.family import FeedForward
from prismoe.model_plugins.moe_layer.experts.by_platform import experts_options
from prismoe.model_plugins.moe_layer.router import PolicyRouter


class MoE(nn.Module):
    """Experts, chosen for each token by `router`.

    With a `residual` layer the output is a mix of both, in shares that depend on the token (DeepSpeed's
    residual MoE, `use_residual`).
    """

    def __init__(
        self,
        kind: FeedForward,
        hidden_size: int,
        expert_width: int,
        num_experts: int,
        router: PolicyRouter,
        residual: nn.Module | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        # The authors' gate computes in float32, whatever the model's dtype.
        self.gate = (
            ReplicatedLinear(
                hidden_size, router.gate_rows, bias=False, params_dtype=torch.float32, prefix=f"{prefix}.gate"
            )
            if router.gate_rows
            else None
        )
        self.request_gate = router.request_gate
        if router.parameters:
            self.router = router.parameters
        self.experts = FusedMoEFactory(
            num_experts=num_experts,
            top_k=router.top_k,
            hidden_size=hidden_size,
            intermediate_size=expert_width,
            quant_config=quant_config,
            router=router,
            has_bias=kind.has_bias,
            ckpt_names=_expert_names(kind),
            router_logits_dtype=torch.float32,
            prefix=f"{prefix}.experts",
            **experts_options(kind.activation, router, quant_config),
        )
        self.mlp = residual
        if residual is not None:
            self.coefficient = ReplicatedLinear(hidden_size, 2, prefix=f"{prefix}.coefficient")

    def forward(self, hidden_TD: Tensor) -> Tensor:
        output_TD: Tensor = self.experts(hidden_TD, self._router_logits(hidden_TD))
        if self.mlp is None:
            return output_TD
        shares_T2 = torch.softmax(self.coefficient(hidden_TD)[0], dim=-1)
        return output_TD * shares_T2[:, :1] + self.mlp(hidden_TD) * shares_T2[:, 1:]

    def _router_logits(self, hidden_TD: Tensor) -> Tensor:
        """The router's logits, `[T, E]`; `[T, 0]` where the policy has its own router."""
        if self.request_gate is not None:
            request_logits_TE: Tensor = self.request_gate(hidden_TD)
            return request_logits_TE
        if self.gate is None:
            return hidden_TD.new_empty(len(hidden_TD), 0)
        logits_TE: Tensor = self.gate(hidden_TD.float())[0]
        return logits_TE


def _expert_names(kind: FeedForward) -> tuple[str, str, str | None]:
    """The checkpoint's names of gate, down and up. Without a gate, vLLM expects up in its place."""
    return (kind.up, kind.down, None) if kind.gate is None else (kind.gate, kind.down, kind.up)
