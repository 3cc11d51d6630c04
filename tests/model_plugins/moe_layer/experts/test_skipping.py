"""The kernel of a vLLM model runs exactly the pairs that a step uses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from prismoe.kernels import ragged_experts
from prismoe.model_plugins.moe_layer.experts import skipping
from prismoe.model_plugins.moe_layer.experts.skipping import skip_unused_slots
from tests.kernels.ragged_routing import ragged_routing

EXPERTS, SLOTS, HIDDEN = 6, 4, 8


class Kernel:
    """A kernel whose experts multiply by their number plus one.

    It records the number of pairs that it ran.
    """

    def __init__(self) -> None:
        self.pairs = 0

    def apply(
        self, output: Tensor, hidden_states: Tensor, topk_weights: Tensor, topk_ids: Tensor, **_: object
    ) -> None:
        self.pairs += topk_ids.numel()
        output.copy_(hidden_states * (topk_weights * (topk_ids + 1)).sum(dim=1, keepdim=True))


def layer(method: Any) -> Any:
    method.moe_kernel = SimpleNamespace(fused_experts=Kernel())
    return SimpleNamespace(
        layer_name="layers.0",
        quant_method=method,
        w13_weight=None,
        w2_weight=None,
        activation="silu",
        global_num_experts=EXPERTS,
    )


@pytest.fixture(autouse=True)
def least(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in (ragged_experts.LEAST_WORK, ragged_experts.LEAST_SLOTS):
        monkeypatch.setitem(bound, torch.float32, 1)


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_only_used_pairs_are_computed(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    experts = layer(UnquantizedFusedMoEMethod.__new__(UnquantizedFusedMoEMethod))
    kernel = experts.quant_method.moe_kernel.fused_experts
    runner = SimpleNamespace(routed_experts=experts)
    context = SimpleNamespace(no_compile_layers={"layers.0": runner})
    monkeypatch.setattr(skipping, "get_forward_context", lambda: context)
    skip_unused_slots(runner)  # type: ignore[arg-type]
    weights_TA, experts_TA = ragged_routing(tokens, EXPERTS, SLOTS)
    hidden_TD = torch.randn(tokens, HIDDEN)
    output_TD = torch.empty_like(hidden_TD)
    kernel.apply(output=output_TD, hidden_states=hidden_TD, topk_weights=weights_TA, topk_ids=experts_TA)
    expected_TD = hidden_TD * (weights_TA * (experts_TA + 1)).sum(dim=1, keepdim=True)
    torch.testing.assert_close(output_TD, expected_TD)
    assert kernel.pairs == int((weights_TA > 0).sum())


def test_quantised_experts_are_not_changed() -> None:
    experts = layer(SimpleNamespace())
    kernel = experts.quant_method.moe_kernel.fused_experts
    skip_unused_slots(SimpleNamespace(routed_experts=experts))  # type: ignore[arg-type]
    assert kernel.apply.__func__ is Kernel.apply
