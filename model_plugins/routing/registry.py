"""The policies by name, and which one is in force: the operator's, else the checkpoint's, else top-k."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from prismoe.model_plugins.routing.ltdr import LTDR
from prismoe.model_plugins.routing.policy import RoutingPolicy
from prismoe.model_plugins.routing.topk import TopK

AnyPolicy = Annotated[TopK | LTDR, Field(discriminator="policy")]

_adapter: TypeAdapter[RoutingPolicy] = TypeAdapter(AnyPolicy)


@dataclass(frozen=True)
class RoutingInForce:
    """A policy and where it was said."""

    policy: RoutingPolicy
    source: Literal["--routing", "checkpoint", "default"]


def choose_routing(
    operator: Mapping[str, Any] | None, checkpoint: Mapping[str, Any] | None, top_k: int
) -> RoutingInForce:
    """The policy in force. Settings that are not given are the checkpoint's k, renormalised when k > 1.

    Raises ValueError with a sentence when the settings are not a policy's.
    """
    if operator is not None:
        return RoutingInForce(_parse(operator, top_k, "--routing"), "--routing")
    if checkpoint is not None:
        return RoutingInForce(_parse(checkpoint, top_k, "the checkpoint's prismoe_routing"), "checkpoint")
    return RoutingInForce(_parse({"policy": "topk"}, top_k, "the default"), "default")


def _parse(settings: Mapping[str, Any], top_k: int, said_in: str) -> RoutingPolicy:
    top_k = settings.get("top_k", top_k)
    try:
        return _adapter.validate_python({"top_k": top_k, "norm_topk_prob": top_k != 1, **settings})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'policy'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"The routing settings in {said_in} cannot be used: {faults}.") from error


@lru_cache
def policy_from_json(settings: str) -> RoutingPolicy:
    """The policy whose `model_dump_json()` this is."""
    return _adapter.validate_json(settings)
