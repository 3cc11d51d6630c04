"""Settings of how much a client may take."""

from typing import Annotated

from pydantic import BaseModel, Field

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


class LimitSettings(BaseModel):
    """Bounds on requests. Images and tokens of a request are bounded by vLLM's own options."""

    max_requests: Count = Field(
        1024, description="most requests at a time, running or waiting; the next gets status 429"
    )
    max_requests_per_key: Count = Field(
        256, description="most requests at a time with one key; the next gets status 429"
    )
    max_body_mib: Count = Field(32, description="largest body of a request; a larger one gets status 413")
    max_bodies_mib: Count = Field(
        1024, description="most of all bodies at a time; the next request gets status 429"
    )
    max_connections: Count = Field(4096, description="most open connections; the server closes the next")
    header_seconds: Seconds = Field(
        10, description="most time for a request's header; then the connection closes"
    )
    body_seconds: Seconds = Field(60, description="most time for a request's body; then it gets status 408")
    write_seconds: Seconds = Field(
        60, description="most time that a client reads nothing; then the connection closes"
    )
