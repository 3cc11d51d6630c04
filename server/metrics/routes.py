"""The routes under /v1/routing about the routing in force and the expert load."""

from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import BaseModel, ConfigDict, FiniteFloat

from prismoe.model_plugins.routing import RoutedBy
from prismoe.server.access.keys import Key, Role
from prismoe.server.metrics.expert_load import ExpertLoad
from prismoe.server.metrics.load_reader import Engine

router = APIRouter(prefix="/v1/routing", tags=["routing"])

ADMINS_ONLY = (
    "Only an administrator's key may change the routing: make one with `prismoe key NAME FILE --role admin`, "
    "and name FILE with `prismoe serve --api-keys-file FILE`."
)
NOT_SWITCHABLE = (
    "This server's routing can't be changed while it runs: start it with one of vLLM's own models, and with "
    "a policy in --routing."
)


class ServedLayer(BaseModel):
    """How one decoder layer routes."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    layer: int
    """The layer's index in the decoder."""
    experts: int
    """The number of its experts."""
    top_k: int
    """The number of experts that the model's own gate picks."""
    gate: str
    """How the model's own gate turns logits into routing weights."""
    kernel: str
    """The class that runs the experts."""
    policy: dict[str, Any]
    """The name and all settings of its policy."""
    sources: dict[str, str]
    """The source of each setting: --routing, the checkpoint, the default or the model."""


class ServedRouting(BaseModel):
    """How the model routes."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    source: str
    """The source of the policy: --routing, the checkpoint, the default or the model."""
    in_force: RoutedBy
    """What routes now. policy: the layers' policies; native: the model's own gate."""
    switchable: bool
    """Whether `PUT /v1/routing/in_force` and `PATCH /v1/routing/thresholds` can change the routing."""
    architecture: str
    """The class of the model, as its config.json names it."""
    modalities: list[str]
    """The modalities that the model takes: text, image, video, audio."""
    layers: list[ServedLayer]
    """The MoE layers. The list is empty if the model has none that prismoe can see."""
    not_supported: list[str]
    """Sentences that say what is not supported with this model, and why."""
    shadow: list[ServedLayer] | None = None
    """The layers under the shadow policy, whose choices are only counted; None without one."""

    def sentences(self) -> list[str]:
        """Return sentences about the routing for the log, without the policies' settings."""
        kinds = Counter(
            (layer.experts, layer.top_k, layer.gate, layer.kernel, layer.policy["policy"])
            for layer in self.layers
        )
        return [
            f"{self.architecture} takes {', '.join(self.modalities)}.",
            *(
                f"MoE layers with {experts} experts: {count}. Their gate ({gate}) picks {top_k} experts, "
                f"{kernel} runs them, and the policy is {policy} (set by: {self.source})."
                for (experts, top_k, gate, kernel, policy), count in kinds.items()
            ),
            *(
                f"The shadow policy is {policy}. Its choices are counted and not used. MoE layers: {count}."
                for policy, count in Counter(layer.policy["policy"] for layer in self.shadow or ()).items()
            ),
            *self.not_supported,
        ]


class InForce(BaseModel):
    """The routing that the MoE layers use."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    routing: RoutedBy
    """policy: the policy of --routing; native: the model's own gate."""


Thresholds = dict[str, FiniteFloat]


class NewThresholds(BaseModel):
    """Thresholds to change, in the form of `--routing`: for all layers, or for some under `layers`."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)
    __pydantic_extra__: Thresholds

    layers: dict[str, Thresholds] = {}
    """The thresholds of single layers, by the layer's index."""


async def routing_in_force(engine: Engine) -> ServedRouting:
    """Ask the engines how the model routes. All of them must give the same answer.

    Raises ValueError if the engines don't see the same layers.
    """
    routings = [ServedRouting.model_validate(answer) for answer in await engine.ask("prismoe_routing")]
    if len({tuple(layer.layer for layer in routing.layers) for routing in routings}) > 1:
        reasons = " ".join(dict.fromkeys(reason for routing in routings for reason in routing.not_supported))
        raise ValueError(
            "The engines don't see the same MoE layers, so their counts can't be added up: "
            f"leave --data-parallel-size out. {reasons}"
        )
    return routings[0]


@router.get("")
async def routing(request: Request) -> ServedRouting:
    """Return the routing policy of each MoE layer, and whether it is in force."""
    in_force: ServedRouting = request.app.state.routing
    return in_force


def administrator(request: Request) -> Key:
    """Return the key of an administrator's request. Raises HTTPException for other requests."""
    key: Key | None = request.scope.get("prismoe.key")
    if key is None or key.role is not Role.ADMIN:
        raise HTTPException(403, ADMINS_ONLY)
    return key


# The route needs its own path, because the path alone decides which keys open it.
@router.put("/in_force")
async def put_in_force(
    body: InForce, key: Annotated[Key, Depends(administrator)], request: Request
) -> InForce:
    """Switch to the model's native routing, or back to its policy, without a restart.

    Running requests continue. Requests after the answer use the new routing.
    """
    state = request.app.state
    if not state.routing.switchable:
        raise HTTPException(409, NOT_SWITCHABLE)
    await state.routing_switch.switch_to(body.routing, key.name)
    return body


@router.patch("/thresholds")
async def patch_thresholds(
    body: NewThresholds, key: Annotated[Key, Depends(administrator)], request: Request
) -> ServedRouting:
    """Change thresholds of the policies without a restart. Thresholds that are not named keep their values.

    Running requests continue. Requests after the answer use the new thresholds from their first token on.
    """
    state = request.app.state
    if not state.routing.switchable:
        raise HTTPException(409, NOT_SWITCHABLE)
    try:
        await state.routing_switch.change_thresholds(body.__pydantic_extra__, body.layers, key.name)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    in_force: ServedRouting = state.routing
    return in_force


@router.get("/load")
async def routing_load(request: Request) -> ExpertLoad:
    """Return the expert load since the start, and the load under the shadow policy.

    The reading is at most half a second old. /metrics has the same counts, as of the last interval.
    """
    load: ExpertLoad = await request.app.state.expert_load.recent()
    return load
