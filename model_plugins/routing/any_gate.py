"""Checks that the operator's policies work under the gate of a model that vLLM has built."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from prismoe.model_plugins.routing.calibrated import CALIBRATED, Calibrated, ModelIdentity
from prismoe.model_plugins.routing.policy import RoutingPolicy
from prismoe.model_plugins.routing.registry import POLICIES, Option, Settings, policies_named

PARAMETERS = "parameters"
"""The setting that names a safetensors file with a policy's trained parameters."""


class OperatorPolicies(NamedTuple):
    """The operator's routing settings for such a model."""

    settings: Settings
    trained: str | None
    option: Option
    calibrated_for: ModelIdentity | None = None

    @classmethod
    def of(cls, routing: Mapping[str, Any], option: Option = "--routing") -> Self:
        """Read the settings. Raises ValueError for a policy that only works with its own gate."""
        settings = {name: value for name, value in routing.items() if name not in (PARAMETERS, CALIBRATED)}
        for policy in policies_named(settings, option):
            _check(policy)
        trained = routing.get(PARAMETERS)
        if trained is not None and not isinstance(trained, str):
            raise ValueError(f"The routing setting {PARAMETERS} is {trained!r}: name a safetensors file.")
        return cls(settings, trained, option, Calibrated.model_of(routing))


def _check(policy: RoutingPolicy) -> None:
    if not policy.takes_any_gate:
        names = ", ".join(name for name, kind in POLICIES.items() if kind.takes_any_gate)
        raise ValueError(
            f"The policy {policy.policy} has its own router, which this model was not trained with: "
            f"use one of {names}, or native."
        )
    if policy.gate_rows(64) != 64:
        raise ValueError(
            f"This model's gate scores all of its experts, so {policy.policy} can't have shared_experts: "
            "leave them out."
        )
    if policy.needs_whole_images:
        raise ValueError(
            f"The policy {policy.policy} compares the tokens of a whole image, and vLLM may cut this model's "
            "images between steps: give it a threshold."
        )
