"""What prismoe adds to vLLM's HTTP API."""

from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from pydantic import BaseModel, ConfigDict, FiniteFloat

from prismoe.model_plugins.routing import RoutedBy
from prismoe.server.access.keys import Key, Role
from prismoe.server.metrics.expert_load import ExpertLoad
from prismoe.server.metrics.load_reader import Engine

router = APIRouter(prefix="/v1/routing", tags=["routing"])

ADMINS_ALONE = (
    "Only an administrator's key may change the routing: make one with `prismoe key NAME FILE --role admin`, "
    "and name FILE with `prismoe serve --api-keys-file FILE`."
)
NOTHING_TO_SWITCH = (
    "There is nothing to switch: only a model of vLLM's own that was started with a policy in --routing has "
    "its native routing, too."
)


class ServedLayer(BaseModel):
    """How one decoder layer routes."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    layer: int
    """Its index in the decoder."""
    experts: int
    """How many experts it has."""
    top_k: int
    """How many experts the model's own gate picks."""
    gate: str
    """How the model's own gate turns logits into routing weights."""
    kernel: str
    """The class of vLLM's experts that run."""
    policy: dict[str, Any]
    """The name of its policy, and all settings of it."""
    sources: dict[str, str]
    """Where each setting was said: by --routing, the checkpoint, the default or the model."""


class ServedRouting(BaseModel):
    """How the model routes."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    source: str
    """Where the policy was said: by --routing, the checkpoint, the default or the model."""
    in_force: RoutedBy
    """Whether the layers' policies route now, or the model's own gate does."""
    switchable: bool
    """Whether `PUT /v1/routing/in_force` and `PATCH /v1/routing/thresholds` may change that."""
    architecture: str
    """The class of the model, as its config.json names it."""
    modalities: list[str]
    """What the model takes: text, image, video, audio."""
    layers: list[ServedLayer]
    """The MoE layers; empty where the model has none that can be seen."""
    not_supported: list[str]
    """Sentences: what is not supported with this model, and why."""
    shadow: list[ServedLayer] | None = None
    """How the shadow policy would route, which is counted and routes nothing; None without one."""

    def sentences(self) -> list[str]:
        """All of it but the policies' settings, as the server's log tells it at the start."""
        kinds = Counter(
            (layer.experts, layer.top_k, layer.gate, layer.kernel, layer.policy["policy"])
            for layer in self.layers
        )
        return [
            f"{self.architecture} takes {', '.join(self.modalities)}.",
            *(
                f"MoE layers of {experts} experts: {count}. The model's gate ({gate}) picks {top_k}, "
                f"{kernel} runs them, the policy is {policy} ({self.source})."
                for (experts, top_k, gate, kernel, policy), count in kinds.items()
            ),
            *(
                f"In the shadow {policy} is counted in {count} MoE layers, and routes nothing."
                for policy, count in Counter(layer.policy["policy"] for layer in self.shadow or ()).items()
            ),
            *self.not_supported,
        ]


class InForce(BaseModel):
    """Whose choice the MoE layers take."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    routing: RoutedBy
    """policy: that of --routing; native: the model's own."""


Thresholds = dict[str, FiniteFloat]


class NewThresholds(BaseModel):
    """Thresholds to change, in the form of `--routing`: those of all layers, and of one under `layers`."""

    model_config = ConfigDict(extra="allow", strict=True, use_attribute_docstrings=True)
    __pydantic_extra__: Thresholds

    layers: dict[str, Thresholds] = {}
    """The thresholds of single layers, by the layer's index."""


async def routing_in_force(engine: Engine) -> ServedRouting:
    """Ask how the model routes: each engine answers alike, and as long as it runs.

    Raises ValueError where an engine sees layers that another one can't see.
    """
    told = [ServedRouting.model_validate(answer) for answer in await engine.ask("prismoe_routing")]
    if len({tuple(layer.layer for layer in each.layers) for each in told}) > 1:
        why = " ".join(dict.fromkeys(why for each in told for why in each.not_supported))
        raise ValueError(
            "The engines don't see the same MoE layers, so their counts can't be added up: "
            f"leave --data-parallel-size out. {why}"
        )
    return told[0]


@router.get("")
async def routing(request: Request) -> ServedRouting:
    """The routing policy of each MoE layer, and whether it is in force."""
    in_force: ServedRouting = request.app.state.routing
    return in_force


def administrator(request: Request) -> Key:
    """The key of a request that only an administrator may make. Raises HTTPException for others."""
    key: Key | None = request.scope.get("prismoe.key")
    if key is None or key.role is not Role.ADMIN:
        raise HTTPException(403, ADMINS_ALONE)
    return key


# A path of its own, because access is judged by the path alone.
@router.put("/in_force")
async def put_in_force(
    asked: InForce, key: Annotated[Key, Depends(administrator)], request: Request
) -> InForce:
    """Return the model to its native routing, or to its policy, without a restart.

    Requests under way run on; those that come after the answer are routed so.
    """
    state = request.app.state
    if not state.routing.switchable:
        raise HTTPException(409, NOTHING_TO_SWITCH)
    await state.routing_switch.to(asked.routing, key.name)
    return asked


@router.patch("/thresholds")
async def patch_thresholds(
    asked: NewThresholds, key: Annotated[Key, Depends(administrator)], request: Request
) -> ServedRouting:
    """Change thresholds of the policies in force without a restart; what is not named stays as it is.

    Requests under way run on; those that come after the answer are routed so from their first token on.
    """
    state = request.app.state
    if not state.routing.switchable:
        raise HTTPException(409, NOTHING_TO_SWITCH)
    try:
        await state.routing_switch.change_thresholds(asked.__pydantic_extra__, asked.layers, key.name)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    in_force: ServedRouting = state.routing
    return in_force


@router.get("/load")
async def routing_load(request: Request) -> ExpertLoad:
    """The expert load of the last half second, with the shadow policy's in it.

    /metrics has the same counts as of the last interval.
    """
    load: ExpertLoad = await request.app.state.expert_load.recent()
    return load
