"""The routing layer of a model: one policy, the running step's segments, and each MoE layer's load.

It knows nothing of the model: the model asks it for a router per MoE layer and tells it what each step holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig

from prismoe.kernels.expert_load import EXTRA_COLUMNS, MODALITIES
from prismoe.model_plugins.router import PolicyRouter
from prismoe.model_plugins.routing import ROUTING_KEY
from prismoe.model_plugins.routing.registry import RoutingInForce
from prismoe.model_plugins.token_segments import TokenSegments


def operator_routing(vllm_config: VllmConfig) -> Mapping[str, Any] | None:
    """The routing settings that the operator gave, None where the checkpoint's are in force."""
    settings: dict[str, Any] = vllm_config.additional_config  # type: ignore[assignment]
    return settings.get(ROUTING_KEY)


class ModalityRouting(nn.Module):
    """Routers that share a policy, and the load they count."""

    def __init__(self, vllm_config: VllmConfig, in_force: RoutingInForce) -> None:
        super().__init__()
        self.in_force = in_force
        self.segments = TokenSegments(vllm_config.scheduler_config.max_num_batched_tokens)
        self.loads: dict[int, Tensor] = {}

    def router(self, layer: int, num_experts: int) -> PolicyRouter:
        """The router of decoder layer `layer`."""
        load_MC = torch.zeros(len(MODALITIES), num_experts + EXTRA_COLUMNS, dtype=torch.int64)
        self.register_buffer(f"load_of_layer_{layer}", load_MC, persistent=False)
        self.loads[layer] = load_MC
        return PolicyRouter(self.in_force.policy, num_experts, self.segments.segments, load_MC)

    def describe(self) -> dict[str, Any]:
        """What is in force, per layer."""
        policy = self.in_force.policy.model_dump()
        layers = [
            {"layer": layer, "experts": load_MC.shape[1] - EXTRA_COLUMNS, "policy": policy}
            for layer, load_MC in self.loads.items()
        ]
        return {"source": self.in_force.source, "layers": layers}

    def reset_load(self) -> None:
        """Count from zero: on CUDA vLLM warms up with made-up requests, which look like real ones here."""
        for load_MC in self.loads.values():
            load_MC.zero_()

    def load(self) -> Mapping[str, Sequence[Any]]:
        """The load counted so far, each list by layer; `expert_tokens` by modality and expert."""
        loads = [load_MC.tolist() for load_MC in self.loads.values()]
        return {
            "layers": list(self.loads),
            "expert_tokens": [[row[:-EXTRA_COLUMNS] for row in rows] for rows in loads],
            "tokens": [[row[-2] for row in rows] for rows in loads],
            "tail_tokens": [rows[MODALITIES.index("vision")][-1] for rows in loads],
        }
