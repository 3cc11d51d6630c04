"""Settings of how the server notices that its engine is stuck."""

from typing import Self

from pydantic import BaseModel, Field, model_validator

from prismoe.server.limits.settings import Seconds


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

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        for option, seconds in (
            ("--ready-seconds", self.ready_seconds),
            ("--stuck-seconds", self.stuck_seconds),
        ):
            if self.heartbeat_seconds >= seconds:
                raise ValueError(
                    f"--heartbeat-seconds ({self.heartbeat_seconds:g}) has to be smaller than {option} "
                    f"({seconds:g}): an idle engine would be taken for a stuck one."
                )
        return self
