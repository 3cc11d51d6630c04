"""The thresholds of the policies in force, which an administrator may change while requests run."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from prismoe.model_plugins.routing.policy import RoutingPolicy
from prismoe.model_plugins.routing.registry import POLICIES, policy_of

THRESHOLDS_ROUTE = "/v1/routing/thresholds"
"""The route that changes thresholds; also the source of a changed setting."""
ThresholdsByLayer = Mapping[int, Mapping[str, float]]
"""New values by the decoder's layer index and the setting's name."""


def thresholds_of(policy: RoutingPolicy) -> dict[str, float]:
    """The policy's thresholds, without those that are not set."""
    values = {name: getattr(policy, name) for name in policy.thresholds}
    return {name: float(value) for name, value in values.items() if value is not None}


def threshold_tensors(policy: RoutingPolicy, device: torch.device | str) -> dict[str, Tensor]:
    """The policy's thresholds as 0-d float32 tensors on a device, for `RouterInputs.parameters`."""
    return {
        name: torch.tensor(value, dtype=torch.float32, device=device)
        for name, value in thresholds_of(policy).items()
    }


def changed_thresholds(
    policies: Mapping[int, Mapping[str, Any]],
    common: Mapping[str, float],
    by_layer: Mapping[str, Mapping[str, float]],
) -> dict[int, dict[str, float]]:
    """The changes in each layer: `common` where the policy has such a threshold; `by_layer` takes precedence.

    The keys of `by_layer` are the decoder's layer indices as strings, as in JSON. `policies` are the current
    settings of each layer's policy. Raises ValueError where nothing would change, a name is not a threshold
    there, or a policy refuses a value.
    """
    if unknown := sorted(by_layer.keys() - {*map(str, policies)}):
        raise ValueError(
            f"layers names {_listed(unknown)}, but the MoE layers under a policy are {_listed(policies)}."
        )
    changes: dict[int, dict[str, float]] = {}
    known: set[str] = set()
    for layer, settings in policies.items():
        policy = policy_of(POLICIES[settings["policy"]], settings)
        has, own = thresholds_of(policy), by_layer.get(str(layer), {})
        if others := sorted(own.keys() - has.keys()):
            raise ValueError(
                f"{_listed(others)} is not a threshold of layer {layer}: its policy {policy.policy} has "
                f"{_listed(has)}."
            )
        known |= has.keys()
        changed = {name: value for name, value in {**common, **own}.items() if name in has}
        if changed:
            try:
                policy_of(type(policy), policy.model_dump() | changed)
            except ValueError as error:
                raise ValueError(
                    f"The policy {policy.policy} of layer {layer} refuses this: {error}"
                ) from error
            changes[layer] = changed
    if others := sorted(common.keys() - known):
        raise ValueError(
            f"{_listed(others)} is not a threshold in force: these are {_listed(sorted(known))}."
        )
    if not changes:
        raise ValueError(f"Name a threshold to change: there are {_listed(sorted(known))}.")
    return changes


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names)) or "none"
