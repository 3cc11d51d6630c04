"""What the commands are told, apart from vLLM's own options."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, field_validator, model_validator

from prismoe.model_plugins.bundled import bundled_checkpoint
from prismoe.server.access.settings import AccessSettings
from prismoe.server.life.settings import LifeSettings
from prismoe.server.limits.settings import LimitSettings
from prismoe.server.media.settings import MediaSettings

GOALS = {
    "dual_threshold": {"skip", "skip_text"},
    "ltdr": {"tail_share"},
    "entropy": {"mean_experts"},
}
"""The options of `prismoe calibrate` that say what a policy's fitted router is to do."""

MetricsLevel = Literal["summary", "full"]


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


class ServeSettings(RoutingSetting, AccessSettings, LimitSettings, LifeSettings, MediaSettings):
    """One server's settings. `engine_options` are vLLM's own, still as the user typed them."""

    model: str = Field(default_factory=lambda: str(bundled_checkpoint()), validate_default=True)
    expert_load_interval: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    expert_metrics: MetricsLevel = "summary"
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


class CalibrateSettings(RoutingSetting):
    """What `prismoe calibrate` is told. `routing` holds the policy's settings that stay as they are."""

    model: str
    destination: Path
    policy: str
    images: Path | None = None
    questions: Path | None = None
    max_images: Annotated[int, Field(ge=1)] = 256
    skip: Annotated[float, Field(gt=0, lt=1)] | None = None
    skip_text: Annotated[float, Field(ge=0, lt=1)] | None = None
    tail_share: Annotated[float, Field(ge=0, le=1)] | None = None
    mean_experts: Annotated[float, Field(gt=0)] | None = None
    verbose: bool

    @model_validator(mode="after")
    def _check_policy(self) -> "CalibrateSettings":
        named = (self.routing or {}).get("policy", self.policy)
        if named != self.policy:
            raise ValueError(f"--policy is {self.policy} and --routing names {named}: name one policy.")
        if strange := sorted(set(self.goal) - GOALS.get(self.policy, set())):
            options = ", ".join("--" + name.replace("_", "-") for name in strange)
            raise ValueError(f"{options} can't be used with --policy {self.policy}.")
        return self

    @property
    def goal(self) -> dict[str, float]:
        """What the fitted router is to do, as far as the user said."""
        goals = {name: getattr(self, name) for names in GOALS.values() for name in names}
        return {name: value for name, value in goals.items() if value is not None}
