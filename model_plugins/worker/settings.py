"""The settings of prismoe that engines and `vllm serve` read from vLLM's `--additional-config`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError

from prismoe.model_plugins.routing.setting import ShadowSetting

SETTINGS_KEY = "prismoe"
"""The key of prismoe's settings in vLLM's `additional_config`."""
KERNELS_KEY = "prismoe_kernels"
"""The key for the outcome of kernel checks: vLLM's compile cache distinguishes graphs by it, too."""

MetricsLevel = Literal["summary", "full"]


class CodeSettings(BaseModel):
    """Settings for code from the checkpoint."""

    run_checkpoint_code: bool = Field(
        False, description="run the checkpoint's Python files, with all rights of this process"
    )


class LogSettings(BaseModel):
    """Settings for vLLM's log."""

    verbose: bool = Field(False, description="print all of vLLM's log, not only warnings and errors")


class MetricsSettings(BaseModel):
    """Settings for the reading of the engine's counts, and for their series on /metrics."""

    expert_load_interval: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        5.0, title="SECONDS", description="time between two readings of the expert load for /metrics"
    )
    expert_metrics: MetricsLevel = Field(
        "summary",
        description="series of the expert load on /metrics: summary has the same number for every model, "
        "full adds one for each layer and expert",
    )


class EngineSettings(ShadowSetting, MetricsSettings):
    """prismoe's settings for `vllm serve`. `prismoe serve` has options for the same, and more."""

    routes: bool = Field(
        False,
        description="whether /v1/routing and the inspector are there, for all who may use the server",
    )

    @classmethod
    def of(cls, additional_config: Mapping[str, Any] | None) -> Self:
        """The settings in vLLM's `additional_config`. Raises ValueError for unknown or wrong ones."""
        try:
            return cls.model_validate((additional_config or {}).get(SETTINGS_KEY) or {})
        except ValidationError as error:
            fault = error.errors()[0]
            name = ".".join(map(str, (SETTINGS_KEY, *fault["loc"])))
            message = fault["msg"].removeprefix("Value error, ")
            raise ValueError(f"--additional-config: {name}: {message.removesuffix('.')}.") from error
