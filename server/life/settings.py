"""Settings of how the server notices that its engine is stuck."""

from typing import Annotated

from pydantic import BaseModel, Field

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LifeSettings(BaseModel):
    """Bounds on the time since the engine's last step."""

    heartbeat_seconds: Seconds = Field(
        15, description="an engine that did nothing for so long is asked for a step that counts nothing"
    )
    ready_seconds: Seconds = Field(
        60, description="without a step for so long the server is not ready (GET /readyz)"
    )
    stuck_seconds: Seconds = Field(
        300, description="without a step for so long the server ends, to be started anew"
    )
