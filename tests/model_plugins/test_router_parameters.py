"""A policy's own tensors come from the checkpoint, or the start stops with a sentence."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prismoe.model_plugins.moe_llava.model import MoELLaVA
from prismoe.model_plugins.routed_model import router_parameters
from prismoe.model_plugins.routing.registry import choose_routing

EXPERTS = {0: 4, 2: 4}


def model(policy: str) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(hidden_size=8),
        experts_by_layer=EXPERTS,
        routing=SimpleNamespace(in_force=choose_routing({"policy": policy}, None, 2, EXPERTS)),
    )


def test_a_parameter_is_float32_whatever_the_checkpoint_stores() -> None:
    policy = choose_routing({"policy": "bias_corrected"}, None, 2, EXPERTS).layers[0].policy
    parameters = router_parameters(policy, hidden_size=8, num_experts=4)
    bias = parameters["expert_bias"]
    bias.weight_loader(bias, torch.tensor([1, 2, 3, 4], dtype=torch.bfloat16))
    assert bias.dtype == torch.float32
    assert bias.tolist() == [1, 2, 3, 4]


def test_a_parameter_of_another_shape_is_refused() -> None:
    policy = choose_routing({"policy": "gmm", "components": 3}, None, 2, EXPERTS).layers[0].policy
    means = router_parameters(policy, hidden_size=8, num_experts=4)["means"]
    with pytest.raises(ValueError, match=r"means has shape \(2, 4, 16, 32\), .* needs \(2, 4, 3, 32\)"):
        means.weight_loader(means, torch.zeros(2, 4, 16, 32))


def test_a_parameter_that_the_checkpoint_lacks_is_named() -> None:
    loaded = {f"model.layers.0.mlp.router.{name}" for name in ("pressure", "reservation")}
    loaded.add("model.layers.2.mlp.router.pressure")
    with pytest.raises(
        ValueError, match=r"equiroute needs model\.layers\.2\.mlp\.router\.reservation, which"
    ):
        MoELLaVA._check_router_parameters(model("equiroute"), loaded)


def test_a_policy_without_parameters_needs_none() -> None:
    MoELLaVA._check_router_parameters(model("topk"), set())
