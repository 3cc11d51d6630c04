"""A policy's own tensors come from the checkpoint, or the start stops with a message."""

import pytest
import torch

from prismoe.model_plugins.moe_layer.model_routing import router_parameters
from prismoe.model_plugins.routing.registry import choose_routing

EXPERTS = {0: 4, 2: 4}


def test_a_parameter_is_float32_for_any_dtype_of_the_checkpoint() -> None:
    policy = choose_routing({"policy": "bias_corrected"}, None, 2, EXPERTS).layers[0].policy
    parameters = router_parameters(policy, hidden_size=8, num_experts=4)
    bias = parameters["expert_bias"]
    bias.weight_loader(bias, torch.tensor([1, 2, 3, 4], dtype=torch.bfloat16))
    assert bias.dtype == torch.float32
    assert bias.tolist() == [1, 2, 3, 4]


def test_a_parameter_with_a_wrong_shape_is_refused() -> None:
    policy = choose_routing({"policy": "gmm", "components": 3}, None, 2, EXPERTS).layers[0].policy
    means = router_parameters(policy, hidden_size=8, num_experts=4)["means"]
    with pytest.raises(ValueError, match=r"means has shape \(2, 4, 16, 32\), .* needs \(2, 4, 3, 32\)"):
        means.weight_loader(means, torch.zeros(2, 4, 16, 32))
