"""The policies by name, and the choice of one: the operator's, else the checkpoint's, else top-k."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from pydantic import ValidationError

from prismoe.model_plugins.routing.policies.bias_corrected import BiasCorrected
from prismoe.model_plugins.routing.policies.cluster import Cluster
from prismoe.model_plugins.routing.policies.cosine import Cosine
from prismoe.model_plugins.routing.policies.dual_threshold import DualThreshold
from prismoe.model_plugins.routing.policies.entropy import Entropy
from prismoe.model_plugins.routing.policies.equiroute import EquiRoute
from prismoe.model_plugins.routing.policies.fine_grained import FineGrained
from prismoe.model_plugins.routing.policies.gmm import GMM
from prismoe.model_plugins.routing.policies.instruction import Instruction
from prismoe.model_plugins.routing.policies.ltdr import LTDR
from prismoe.model_plugins.routing.policies.modality_conditioned import ModalityConditioned
from prismoe.model_plugins.routing.policies.modality_groups import ModalityGroups
from prismoe.model_plugins.routing.policies.steer import Steer
from prismoe.model_plugins.routing.policies.task import Task
from prismoe.model_plugins.routing.policies.top_any import TopAny
from prismoe.model_plugins.routing.policies.topk import TopK
from prismoe.model_plugins.routing.policy import RoutingPolicy
from prismoe.model_plugins.routing.request_policy import RequestPolicy

POLICIES: dict[str, type[RoutingPolicy]] = {
    "topk": TopK,
    "ltdr": LTDR,
    "gmm": GMM,
    "modality_conditioned": ModalityConditioned,
    "modality_groups": ModalityGroups,
    "equiroute": EquiRoute,
    "top_any": TopAny,
    "cosine": Cosine,
    "bias_corrected": BiasCorrected,
    "fine_grained": FineGrained,
    "task": Task,
    "cluster": Cluster,
    "instruction": Instruction,
    "dual_threshold": DualThreshold,
    "entropy": Entropy,
    "steer": Steer,
}

ENTRY_POINTS = "prismoe.policies"
"""The entry point group in which an installed package names its own policies."""


def installed_policies(entry_points: Iterable[EntryPoint]) -> dict[str, type[RoutingPolicy]]:
    """The policies that other packages name, by the default of their field `policy`.

    Raises ValueError for something that is not a policy, and for a name that is not free.
    """
    found: dict[str, type[RoutingPolicy]] = {}
    for entry in entry_points:
        kind = entry.load()
        of = f"The entry point {entry.name} of the group {ENTRY_POINTS} ({entry.value})"
        if not (isinstance(kind, type) and issubclass(kind, RoutingPolicy)):
            raise ValueError(f"{of} is not a RoutingPolicy: name a subclass of it, or uninstall its package.")
        if kind.model_fields["policy"].default != entry.name:
            raise ValueError(f"{of} needs the name that is the default of its field policy.")
        if entry.name in POLICIES or entry.name in found:
            raise ValueError(f"{of} has the name of another policy: rename it, or uninstall its package.")
        found[entry.name] = kind
    return found


POLICIES |= installed_policies(entry_points(group=ENTRY_POINTS))

Option = Literal["--routing", "--shadow"]
Source = Literal[Option, "checkpoint", "default"]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class LayerRouting:
    """The policy of one MoE layer, and the source of each of its settings."""

    policy: RoutingPolicy
    sources: Mapping[str, Source]
    most_request_experts: int
    """The most experts that a request may ask for its vision tokens."""
    num_experts: int


@dataclass(frozen=True)
class RoutingInForce:
    """The routing of each MoE layer, by its index in the decoder, and the source of the routing."""

    source: Source
    layers: Mapping[int, LayerRouting]

    @property
    def needs_whole_images(self) -> bool:
        """Whether all tokens of an image must be routed in the same step."""
        return any(layer.policy.needs_whole_images for layer in self.layers.values())

    @property
    def needs_whole_requests(self) -> bool:
        """Whether all images of a request must be routed in the same step."""
        return any(layer.policy.needs_whole_requests for layer in self.layers.values())

    @property
    def experts_by_request_layer(self) -> Mapping[int, int]:
        """The number of experts of each layer that decides once per request."""
        return {
            layer: routing.num_experts
            for layer, routing in self.layers.items()
            if isinstance(routing.policy, RequestPolicy)
        }

    @property
    def most_request_experts(self) -> int:
        """The most experts that a request may ask for; a layer with fewer slots then gives all of them."""
        return max((layer.most_request_experts for layer in self.layers.values()), default=0)


def choose_routing(
    operator: Settings | None,
    checkpoint: Settings | None,
    top_k: int,
    experts_by_layer: Mapping[int, int],
    gate_renormalises: bool | None = None,
    option: Option = "--routing",
) -> RoutingInForce:
    """The routing of each layer of `experts_by_layer`.

    The settings are a policy's, and `layers` holds those that differ in a layer; a layer that names another
    policy starts from that policy's defaults. By default k is the checkpoint's, and weights are renormalised
    when k > 1, or as in the model's own gate (`gate_renormalises`). `option` is the option with the
    operator's settings.

    Raises ValueError when the settings are not a policy's or don't fit a layer.
    """
    source: Source
    place: str
    if operator is not None:
        source, place, settings = option, option, operator
    elif checkpoint is not None:
        source, place, settings = "checkpoint", "the checkpoint's prismoe_routing", checkpoint
    else:
        source, place, settings = "default", "the default", {"policy": "topk"}
    try:
        layers = {
            layer: _layer_routing(layer_settings, source, top_k, experts_by_layer[layer], gate_renormalises)
            for layer, layer_settings in _by_layer(settings, list(experts_by_layer)).items()
        }
    except ValueError as error:
        raise ValueError(f"The routing settings in {place} cannot be used: {error}") from error
    return RoutingInForce(source, layers)


def _by_layer(settings: Settings, layers: list[int]) -> dict[int, Settings]:
    common = {name: value for name, value in settings.items() if name != "layers"}
    overrides = settings.get("layers", {})
    if not isinstance(overrides, dict) or not all(isinstance(value, dict) for value in overrides.values()):
        raise ValueError('layers takes an object of settings for each layer, as in {"2": {"top_k": 1}}.')
    if unknown := sorted(set(overrides) - set(map(str, layers))):
        raise ValueError(
            f"layers names {', '.join(unknown)}, but the MoE layers are {', '.join(map(str, layers))}."
        )
    return {layer: _merged(common, overrides.get(str(layer), {})) for layer in layers}


def _merged(common: Settings, override: Settings) -> Settings:
    names_another_policy = override.get("policy", common.get("policy")) != common.get("policy")
    return override if names_another_policy else {**common, **override}


def policies_named(settings: Settings, option: Option) -> list[RoutingPolicy]:
    """The policies in the settings, for any model: the common one, and those of layers that differ.

    Raises ValueError for anything that is not a policy's setting.
    """
    overrides = settings.get("layers", {})
    layers = list(map(int, overrides)) if isinstance(overrides, dict) else []
    common = {name: value for name, value in settings.items() if name != "layers"}
    try:
        return [_policy(one, 1, True) for one in (common, *_by_layer(settings, layers).values())]
    except ValueError as error:
        raise ValueError(f"The routing settings in {option} cannot be used: {error}") from error


def _layer_routing(
    settings: Settings, source: Source, top_k: int, num_experts: int, gate_renormalises: bool | None
) -> LayerRouting:
    policy = _policy(settings, top_k, gate_renormalises)
    policy.slots(num_experts)
    implied: dict[str, Source] = {"top_k": "checkpoint"}
    sources = {
        name: source if name in settings else implied.get(name, "default")
        for name in type(policy).model_fields
    }
    return LayerRouting(policy, sources, policy.most_request_experts(num_experts), num_experts)


def _policy(settings: Settings, top_k: int, gate_renormalises: bool | None) -> RoutingPolicy:
    name = settings.get("policy")
    if not isinstance(name, str) or name not in POLICIES:
        raise ValueError(f"policy is {name!r}: give one of {', '.join(POLICIES)}.")
    kind = POLICIES[name]
    defaults: dict[str, Any] = {"top_k": top_k, "norm_topk_prob": settings.get("top_k", top_k) != 1}
    given = {name for name, field in kind.model_fields.items() if field.is_required()}
    if gate_renormalises is not None:
        defaults["norm_topk_prob"] = gate_renormalises
        given |= {"norm_topk_prob"} & kind.model_fields.keys()
    own_defaults = {name: value for name, value in defaults.items() if name in given}
    return policy_of(kind, {**own_defaults, **settings})


def policy_of(kind: type[RoutingPolicy], settings: Settings) -> RoutingPolicy:
    """Make a policy of its settings. Raises ValueError for an unknown or wrong setting."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{faults}.") from error
