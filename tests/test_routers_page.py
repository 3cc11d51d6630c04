"""The facts in docs/routers.md are right."""

import re
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from prismoe.kernels.routing import top_experts_by_count
from prismoe.model_plugins.moe_layer.router import PolicyRouter
from prismoe.model_plugins.routing.policy import RouterInputs, Routing, TopKPolicy
from prismoe.model_plugins.routing.registry import POLICIES, choose_routing
from tests.model_plugins.routing.routing_steps import CASES, make, routing_step
from tests.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "routers.md").read_text()
ROWS = {cells[1].strip(" `"): cells for cells in (line.split("|") for line in PAGE.splitlines()) if cells[1:]}


@pytest.mark.parametrize("name", POLICIES)
def test_the_table_names_a_policys_settings_and_parameters(name: str) -> None:
    assert name in ROWS, f"The table of policies in docs/routers.md has no row for {name}."
    _, _, _, _, settings, in_checkpoint, _ = ROWS[name]
    assert set(re.findall(r"`(\w+)`", settings)) == set(POLICIES[name].model_fields) - {"policy"}
    cases = [make(case) for case in CASES.values() if case["policy"] == name]
    assert set(re.findall(r"`(\w+)`", in_checkpoint)) == {p for case in cases for p in case.parameters(8, 4)}
    assert ("no gate" in in_checkpoint) == (min(case.gate_rows(4) for case in cases) == 0)


def test_the_example_is_a_valid_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    policy_code, registry_line = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    # The names that the file's imports would give.
    names: dict[str, Any] = {
        "ClassVar": ClassVar,
        "Literal": Literal,
        "RouterInputs": RouterInputs,
        "Routing": Routing,
        "TopKPolicy": TopKPolicy,
        "top_experts_by_count": top_experts_by_count,
        "torch": torch,
    }
    exec(policy_code, names)
    ((name, policy_class),) = eval(f"{{{registry_line}}}", names).items()
    monkeypatch.setitem(POLICIES, name, policy_class)
    policy = choose_routing({"policy": name}, None, 2, {0: 4}).layers[0].policy
    step = routing_step(policy, 4, [-1, 0, 0])
    router = PolicyRouter(policy, 4, step, 0, nn.ParameterDict())
    weights_TA, *_ = router.decide(torch.empty(3, 8), torch.randn(3, 4))
    assert (weights_TA > 0).sum(dim=1).tolist() == [2, 1, 1]
    assert step.counts.tolist() == [[2, 1, 1]]
