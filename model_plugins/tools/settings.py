"""The settings of `prismoe check`, `convert`, `calibrate` and `evaluate`, and their options' help texts."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ByteSize, ConfigDict, Field, field_validator, model_validator

from prismoe.model_plugins.routing.setting import PolicySettings, RoutingSetting
from prismoe.model_plugins.worker.settings import CodeSettings, LogSettings

GOALS = {
    "dual_threshold": {"skip_overall", "skip", "skip_text"},
    "ltdr": {"tail_share"},
    "entropy": {"mean_experts"},
}
"""The options of `prismoe calibrate` that set the goal of each policy's fit."""

CHECKPOINT = "folder of the checkpoint, or its name on the Hugging Face Hub"

Share = Annotated[float, Field(gt=0, lt=1)]


class CheckSettings(RoutingSetting, LogSettings):
    """The settings of `prismoe check`."""

    model: str = Field(title="MODEL", description=CHECKPOINT)
    against: Path | None = Field(
        None,
        title="FILE",
        description="compare with this .npz file, in float32; it holds results of the authors' code: "
        "input_ids, pixel_values, logits and more",
    )
    as_json: bool = False


class ConvertSettings(RoutingSetting):
    """The settings of `prismoe convert`."""

    source: str = Field(title="SRC", description=CHECKPOINT)
    destination: Path = Field(title="DST", description="new folder to write")
    dtype: Literal["bfloat16", "float16", "float32"] | None = Field(
        None, description="number format of the weights (default: unchanged)"
    )
    max_shard_size: ByteSize = Field(
        ByteSize(4 * 10**9), title="SIZE", description="largest weight file to write (default: 4GB)"
    )


class CalibrateSettings(RoutingSetting, CodeSettings, LogSettings):
    """The settings of `prismoe calibrate`.

    `routing` holds the policy's settings that are not fitted; `engine_options` are vLLM's options, as the
    user typed them.
    """

    model: str = Field(title="MODEL", description=CHECKPOINT)
    destination: Path = Field(
        title="DST",
        description="new folder for a MoE-LLaVA checkpoint with the policy in it; for any other model, "
        "new file of settings to serve with `prismoe serve MODEL --routing @DST`",
    )
    policy: str = Field(
        description="policy to fit: ltdr, dual_threshold or entropy; for MoE-LLaVA also equiroute or gmm"
    )
    routing: PolicySettings = Field(
        None,
        title="JSON",
        description='settings of the policy that are not fitted, for example {"head_experts": 1}',
    )
    images: Path | None = Field(
        None,
        title="DIR",
        description="folder of pictures like those to be served (default: drawings from the bundled model's "
        "training)",
    )
    questions: Path | None = Field(
        None,
        title="FILE",
        description="questions about the pictures, one per line, used in turn (default: four built-in ones)",
    )
    max_images: Annotated[int, Field(ge=1)] = Field(256, title="N", description="most pictures to use")
    skip_overall: Share | None = Field(
        None,
        title="SHARE",
        description="dual_threshold: share of all expert uses to skip; a search finds both thresholds "
        "(default: 0.25)",
    )
    skip: Share | None = Field(
        None,
        title="SHARE",
        description="dual_threshold: share of vision tokens' expert uses to skip, without a search",
    )
    skip_text: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        title="SHARE",
        description="dual_threshold: share of text tokens' expert uses to skip, without a search",
    )
    tail_share: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        title="SHARE",
        description="ltdr: share of vision tokens to make tail tokens (default: the share above the mean RPV "
        "of their image)",
    )
    mean_experts: Annotated[float, Field(gt=0)] | None = Field(
        None, title="N", description="entropy: mean number of experts per token (default: the checkpoint's k)"
    )
    engine_options: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_policy(self) -> "CalibrateSettings":
        named = (self.routing or {}).get("policy", self.policy)
        if named != self.policy:
            raise ValueError(f"--policy is {self.policy} and --routing names {named}: name one policy.")
        if unused := sorted(set(self.goal) - GOALS.get(self.policy, set())):
            options = ", ".join("--" + name.replace("_", "-") for name in unused)
            raise ValueError(f"{options} can't be used with --policy {self.policy}.")
        if self.skip_overall is not None and {"skip", "skip_text"} & set(self.goal):
            raise ValueError(
                "--skip-overall searches the values that --skip and --skip-text set: use either it or these."
            )
        return self

    @property
    def goal(self) -> dict[str, float]:
        """The goal of the fit, as far as the user has set it."""
        goals = {name: getattr(self, name) for names in GOALS.values() for name in names}
        return {name: value for name, value in goals.items() if value is not None}


class EvaluateSettings(CodeSettings, LogSettings):
    """The settings of `prismoe evaluate`. `engine_options` are vLLM's options, as the user typed them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(title="MODEL", description=CHECKPOINT)
    routing: tuple[RoutingSetting, ...] = ()
    questions: Path | None = Field(
        None,
        title="FILE",
        description='questions, one JSON object per line: {"image": path relative to FILE, "question": text, '
        '"answer": text or list of accepted texts} (default: 30 about the six pictures of the bundled model)',
    )
    max_tokens: Annotated[int, Field(ge=1)] = Field(16, title="N", description="most tokens of an answer")
    json_file: Path | None = None
    engine_options: tuple[str, ...] = ()

    @field_validator("routing", mode="before")
    @classmethod
    def _each_a_setting(cls, value: list[str]) -> list[dict[str, str]]:
        return [{"routing": routing} for routing in value]

    @field_validator("json_file")
    @classmethod
    def _has_a_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.parent.is_dir():
            raise ValueError(f"There is no folder {value.parent} for {value.name}: create it first.")
        return value
