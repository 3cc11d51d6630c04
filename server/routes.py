"""What prismoe adds to vLLM's HTTP API."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from prismoe.server.expert_load import ExpertLoad
from prismoe.server.load_reader import Engine

router = APIRouter(prefix="/v1/routing", tags=["routing"])


class LayerRouting(BaseModel):
    """How one decoder layer routes; `sources` says where each setting of its policy was said."""

    model_config = ConfigDict(extra="forbid")

    layer: int
    experts: int
    policy: dict[str, Any]
    sources: dict[str, str]


class RoutingInForce(BaseModel):
    """How the model routes, and where that was said."""

    model_config = ConfigDict(extra="forbid")

    source: str
    layers: list[LayerRouting]


async def routing_in_force(engine: Engine) -> RoutingInForce:
    """Ask how the model routes: each engine answers alike, and as long as it runs."""
    return RoutingInForce.model_validate((await engine.ask("prismoe_routing"))[0])


@router.get("")
async def routing(request: Request) -> RoutingInForce:
    """The routing policy in force, per MoE layer."""
    in_force: RoutingInForce = request.app.state.routing
    return in_force


@router.get("/load")
async def routing_load(request: Request) -> ExpertLoad:
    """The expert load of the last half second. /metrics has the same counts as of the last interval."""
    load: ExpertLoad = await request.app.state.expert_load.recent()
    return load
