"""Settings for noticing a stuck engine."""

from typing import Self

from pydantic import BaseModel, Field, model_validator

from prismoe.server.limits.settings import Seconds


class HealthSettings(BaseModel):
    """Limits on the time since the engine's last step."""

    heartbeat_seconds: Seconds = Field(
        15, description="time without a step after which the server asks the engine for an empty one"
    )
    ready_seconds: Seconds = Field(
        60, description="time without a step after which /readyz says that the server is not ready"
    )
    stuck_seconds: Seconds = Field(
        300,
        description="time without a step after which the server ends with status 1, so that it is restarted",
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        for option, seconds in (
            ("--ready-seconds", self.ready_seconds),
            ("--stuck-seconds", self.stuck_seconds),
        ):
            if self.heartbeat_seconds >= seconds:
                raise ValueError(
                    f"--heartbeat-seconds ({self.heartbeat_seconds:g}) must be smaller than {option} "
                    f"({seconds:g}): otherwise an idle engine counts as a stuck one."
                )
        return self
