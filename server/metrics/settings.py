"""Settings of how expert load is exported."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

MetricsLevel = Literal["summary", "full"]


class MetricsSettings(BaseModel):
    """How often the engine's counts are read, and how many series they become."""

    expert_load_interval: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        5.0, description="how often /metrics gets a fresh expert load, in seconds"
    )
    expert_metrics: MetricsLevel = Field(
        "summary", description="summary: as many series for any model; full: also by layer and expert"
    )
