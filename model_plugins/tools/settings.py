"""What `prismoe check`, `convert`, `calibrate` and `evaluate` are told."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ByteSize, ConfigDict, Field, field_validator, model_validator

from prismoe.model_plugins.routing.setting import RoutingSetting

GOALS = {
    "dual_threshold": {"skip_overall", "skip", "skip_text"},
    "ltdr": {"tail_share"},
    "entropy": {"mean_experts"},
}
"""The options of `prismoe calibrate` that say what a policy's fitted router is to do."""


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
    """What `prismoe calibrate` is told. `routing` holds the policy's settings that stay as they are,
    `engine_options` are vLLM's own, still as the user typed them.
    """

    model: str
    destination: Path
    policy: str
    images: Path | None = None
    questions: Path | None = None
    max_images: Annotated[int, Field(ge=1)] = 256
    skip_overall: Annotated[float, Field(gt=0, lt=1)] | None = None
    skip: Annotated[float, Field(gt=0, lt=1)] | None = None
    skip_text: Annotated[float, Field(ge=0, lt=1)] | None = None
    tail_share: Annotated[float, Field(ge=0, le=1)] | None = None
    mean_experts: Annotated[float, Field(gt=0)] | None = None
    run_checkpoint_code: bool = False
    verbose: bool
    engine_options: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_policy(self) -> "CalibrateSettings":
        named = (self.routing or {}).get("policy", self.policy)
        if named != self.policy:
            raise ValueError(f"--policy is {self.policy} and --routing names {named}: name one policy.")
        if strange := sorted(set(self.goal) - GOALS.get(self.policy, set())):
            options = ", ".join("--" + name.replace("_", "-") for name in strange)
            raise ValueError(f"{options} can't be used with --policy {self.policy}.")
        if self.skip_overall is not None and {"skip", "skip_text"} & set(self.goal):
            raise ValueError("--skip-overall searches what --skip and --skip-text say: give that or those.")
        return self

    @property
    def goal(self) -> dict[str, float]:
        """What the fitted router is to do, as far as the user said."""
        goals = {name: getattr(self, name) for names in GOALS.values() for name in names}
        return {name: value for name, value in goals.items() if value is not None}


class EvaluateSettings(BaseModel):
    """What `prismoe evaluate` is told. `engine_options` are vLLM's own, still as the user typed them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    routing: tuple[RoutingSetting, ...] = ()
    questions: Path | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 16
    json_file: Path | None = None
    run_checkpoint_code: bool = False
    verbose: bool = False
    engine_options: tuple[str, ...] = ()

    @field_validator("routing", mode="before")
    @classmethod
    def _each_a_setting(cls, value: list[str]) -> list[dict[str, str]]:
        return [{"routing": routing} for routing in value]

    @field_validator("json_file")
    @classmethod
    def _has_a_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.parent.is_dir():
            raise ValueError(f"There is no folder {value.parent} to write {value.name} to.")
        return value
