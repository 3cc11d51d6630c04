"""The operator's settings that are impossible under the gate of a built vLLM model."""

import re
from typing import Any

import pytest

from prismoe.model_plugins.routing.any_gate import OperatorPolicies


def test_settings_and_the_file_of_parameters_are_separated() -> None:
    policies = OperatorPolicies.of({"policy": "equiroute", "parameters": "trained.safetensors"})
    assert policies == ({"policy": "equiroute"}, "trained.safetensors", "--routing", None)


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        ({"policy": "ltdr"}, "give it a threshold."),
        ({"policy": "ltdr", "mean_over": "request"}, "give it a threshold."),
        ({"policy": "topk", "layers": {"40": {"policy": "ltdr"}}}, "give it a threshold."),
        ({"policy": "gmm", "top_k": 2}, "has its own router"),
        ({"policy": "modality_groups", "shared_experts": 1}, "can't have shared_experts: "),
        ({"policy": "native", "top_k": 2}, "policy is 'native': give one of"),
        ({"policy": "dual_threshold", "colour": 1}, "colour: Extra inputs are not permitted."),
        ({"policy": "equiroute", "parameters": 3}, "The routing setting parameters is 3"),
    ],
)
def test_impossible_settings_are_refused(routing: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        OperatorPolicies.of(routing)
