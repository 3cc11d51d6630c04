"""The layers of a built vLLM model that a policy can route, and those that it can't."""

import re
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.experts.flashinfer_cutlass_moe import FlashInferExperts
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.platforms import current_platform

from prismoe.model_plugins.moe_layer.attached.attach import gate_of
from prismoe.model_plugins.moe_layer.attached.checked_policies import check_layer
from prismoe.model_plugins.routing.registry import LayerRouting, choose_routing
from tests.model_plugins.moe_layer.native_layers import kernel_of, moe_layer

EXPERTS, K = 12, 2
GROUPED = {
    "scoring_func": "sigmoid",
    "use_grouped_topk": True,
    "num_expert_group": 4,
    "topk_group": 2,
    "e_score_correction_bias": torch.linspace(-0.2, 0.2, EXPERTS),
}


class Gemma4Gate:
    """A routing function like Gemma-4's: a renormalised softmax, times a scale for each expert."""

    def __init__(self) -> None:
        self.per_expert_scale = torch.linspace(0.5, 1.5, EXPERTS)

    def __call__(self, gating_output: Tensor, topk: int, **_: object) -> tuple[Tensor, Tensor]:
        weights_TK, experts_TK = gating_output.softmax(dim=-1).topk(topk)
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
        return weights_TK * self.per_expert_scale[experts_TK], experts_TK

    def route(self, **options: Any) -> tuple[Tensor, Tensor]:
        return self(**options)


def layer(kernel: dict[str, Any] | None = None, **gate: Any) -> Any:
    """A vLLM layer whose router has these settings."""
    settings = {"renormalize": True, "top_k": K, "apply_router_weight_on_input": False} | gate
    options = {name: value for name, value in settings.items() if name != "apply_router_weight_on_input"}
    made = moe_layer(3, CPURouter(options.pop("top_k"), EXPERTS, **options), **settings, **(kernel or {}))
    made.routed_experts.w2_weight = torch.empty(0)
    made.moe_config = SimpleNamespace(
        is_sequence_parallel=False,
        num_logical_experts=EXPERTS,
        hidden_dim=16,
        moe_backend="auto",
        moe_parallel_config=SimpleNamespace(use_batched_activation_format=False, use_moonep_kernels=False),
    )
    return made


def routing(**settings: Any) -> LayerRouting:
    return choose_routing({"policy": "topk"} | settings, None, K, {3: EXPERTS}, True).layers[3]


@pytest.mark.parametrize(
    "gate",
    [
        {},
        {"renormalize": False},
        GROUPED,
        GROUPED | {"routed_scaling_factor": 2.5, "renormalize": False},
        {"custom_routing_function": Gemma4Gate().route},
    ],
)
def test_a_reproducible_gate_can_be_routed(gate: dict[str, Any]) -> None:
    runner = layer(**gate)
    check_layer(runner, gate_of(runner), routing())


@pytest.mark.parametrize(
    ("gate", "kernel", "settings", "message"),
    [
        ({"custom_routing_function": max}, {}, {}, "is the model's own function"),
        # vLLM's router on CPU does not scale a plain softmax: what is read of the layer is not what it does.
        ({"routed_scaling_factor": 2.0}, {}, {}, "can't reproduce the weights of the gate of layer 3"),
        (
            {},
            {"quant_method": SimpleNamespace(is_monolithic=True)},
            {},
            "The kernel of layer 3 (SimpleNamespace) routes by itself",
        ),
        ({"apply_router_weight_on_input": True}, {}, {}, "take their weights with their inputs"),
        (GROUPED, {}, {"top_k": 7}, "chooses among 6 of its experts, and the policy topk asks for up to 7"),
    ],
)
def test_a_layer_that_cannot_be_routed_gives_a_reason(
    gate: dict[str, Any], kernel: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    runner = layer(kernel, **gate)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_layer(runner, gate_of(runner), routing(**settings))


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"policy": "topk"}, False),
        ({"policy": "topk", "top_k": 1}, True),
        ({"policy": "dual_threshold"}, True),
    ],
)
def test_a_kernel_that_cannot_leave_slots_unused_gets_none(
    settings: dict[str, Any], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_platform, "is_cuda", lambda: True)
    runner = layer(kernel_of(FlashInferExperts))
    with pytest.raises(ValueError, match="--moe-backend triton") if refused else nullcontext():
        check_layer(runner, gate_of(runner), routing(**settings))
