"""Settings of how much a client may take."""

from typing import Annotated

from pydantic import BaseModel, Field

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


class LimitSettings(BaseModel):
    """Bounds on requests. Images and tokens of a request are bounded by vLLM's own options."""

    max_requests: Count = Field(
        1024, description="requests under way, running or waiting; more get a 429 with Retry-After"
    )
    max_requests_per_key: Count = Field(256, description="the same for the requests of one key")
    max_body_mib: Count = Field(32, description="the body of a request; a larger one gets a 413")
    max_bodies_mib: Count = Field(1024, description="the bodies of all requests under way; more get a 429")
    max_connections: Count = Field(4096, description="open connections; more are closed")
    header_seconds: Seconds = Field(10, description="a request whose header takes longer is closed")
    body_seconds: Seconds = Field(60, description="a request whose body takes longer gets a 408")
    write_seconds: Seconds = Field(60, description="a client that reads nothing for so long is cut off")
