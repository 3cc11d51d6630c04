"""What the commands are told, apart from vLLM's own options."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ByteSize, ConfigDict, Field, field_validator

from prismoe.model_plugins.bundled import bundled_checkpoint


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


class ServeSettings(RoutingSetting):
    """One server's settings. `engine_options` are vLLM's own, still as the user typed them."""

    model: str = Field(default_factory=lambda: str(bundled_checkpoint()), validate_default=True)
    expert_load_interval: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    engine_options: tuple[str, ...] = ()

    @field_validator("model")
    @classmethod
    def _find_folder(cls, value: str) -> str:
        if value.startswith(("/", ".", "~")) and not Path(value).is_dir():
            raise ValueError(f"There is no folder {value}.")
        return value

    @property
    def bundled(self) -> bool:
        """Whether the model is the one that ships with prismoe."""
        return Path(self.model) == bundled_checkpoint()


class CheckSettings(RoutingSetting):
    """What `prismoe check` is told."""

    model: str
    against: Path | None = None
    as_json: bool
    verbose: bool


class ConvertSettings(RoutingSetting):
    """What `prismoe convert` is told."""

    source: str
    destination: Path
    dtype: str | None = None
    max_shard_size: ByteSize
