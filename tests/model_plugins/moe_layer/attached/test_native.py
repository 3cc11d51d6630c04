"""The description of a vLLM model: its gate, and the reason why its routing can't be counted."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.router.fused_topk_bias_router import FusedTopKBiasRouter

from prismoe.model_plugins.moe_layer.attached.attach import gate_of, why_unseen
from tests.model_plugins.moe_layer.native_layers import moe_layer, moe_layers

MEDIA = ["text", "image", "video", "audio"]
SIGMOID = {"scoring_func": "sigmoid", "e_score_correction_bias": torch.zeros(8), "renormalize": True}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "softmax"),
        ({"renormalize": True}, "softmax, renormalised"),
        (
            SIGMOID | {"use_grouped_topk": True, "num_expert_group": 1, "topk_group": 1},
            "sigmoid, with a bias, renormalised",
        ),
        (
            SIGMOID
            | {
                "use_grouped_topk": True,
                "num_expert_group": 4,
                "topk_group": 2,
                "routed_scaling_factor": 2.5,
            },
            "sigmoid, with a bias, in the best 2 of 4 groups, renormalised, times 2.5",
        ),
        # vLLM passes all settings to such a function, which can ignore them.
        (SIGMOID | {"custom_routing_function": max}, "the model's own function"),
    ],
)
def test_the_description_of_a_gate(settings: dict[str, Any], message: str) -> None:
    assert str(gate_of(moe_layer(**settings))) == message


@pytest.mark.parametrize(
    ("by_token", "known"),
    [({}, True), ({"hash_indices_table": torch.zeros(9, 2)}, False), ({"bias_vl": torch.zeros(8)}, False)],
)
def test_a_router_that_chooses_by_tokens_has_no_confidence(by_token: dict[str, Any], known: bool) -> None:
    """DeepSeek-V4 chooses by token id in its first layers, and by a separate bias for images in all."""
    router = FusedTopKBiasRouter(
        2, 8, e_score_correction_bias=torch.zeros(8), scoring_func="sqrtsoftplus", **by_token
    )
    gate = gate_of(moe_layer(router=router, scoring_func="sqrtsoftplus"))
    assert (gate.scoring == "sqrtsoftplus") is known


def test_a_models_layers_are_observed() -> None:
    assert why_unseen("Qwen3VLMoeForConditionalGeneration", moe_layers(0, 1, 2), MEDIA[:3]) is None


def test_two_sets_of_experts_are_observed_if_they_are_for_text_and_vision() -> None:
    assert why_unseen("Ernie4_5_VLMoeForConditionalGeneration", moe_layers(1, 1, 2, 2), MEDIA[:3]) is None
    assert why_unseen("AriaForConditionalGeneration", moe_layers(1, 1, 2, 2), MEDIA[:3]) is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_naive_dispatch_combine": True}, "gathers the tokens of several ranks"),
        ({"moe_config": SimpleNamespace(is_sequence_parallel=True)}, "splits a step's tokens over the ranks"),
        ({"router": object()}, "The routing of vLLM's object can't be seen"),
        ({"router": Mock(BaseRouter)}, None),
    ],
)
def test_layers_with_other_rows_than_the_steps_are_not_observed(
    changes: dict[str, Any], message: str | None
) -> None:
    layer = moe_layer(1)
    vars(layer).update(changes)
    reported = why_unseen("AriaForConditionalGeneration", [moe_layer(0), layer], MEDIA[:2])
    assert reported is None if message is None else reported is not None and message in reported
