"""The setting that says how to route, as the commands take it."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class RoutingSetting(BaseModel):
    """`--routing`, which all commands take: how to route, None where the checkpoint says it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    routing: dict[str, Any] | None = None

    @field_validator("routing", mode="before")
    @classmethod
    def _parse_routing(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            routing = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f'{value!r} is not JSON ({error}). Example: \'{{"policy": "ltdr"}}\'') from error
        if not isinstance(routing, dict):
            raise ValueError(f'{value!r} is not a JSON object. Example: \'{{"policy": "ltdr"}}\'')
        return routing
