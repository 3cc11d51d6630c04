"""Settings for the limits on requests and connections."""

from typing import Annotated

from pydantic import BaseModel, Field

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]


class LimitSettings(BaseModel):
    """Limits on requests. vLLM's own options limit the images and tokens of a request."""

    max_requests: Count = Field(
        1024, description="most requests at a time, running and waiting; the next one gets status 429"
    )
    max_requests_per_key: Count = Field(
        256, description="most requests at a time with one key; the next one gets status 429"
    )
    max_body_mib: Count = Field(
        32, description="largest size of a request's body; a larger one gets status 413"
    )
    max_bodies_mib: Count = Field(
        1024, description="largest size of all bodies together; the next request gets status 429"
    )
    max_connections: Count = Field(4096, description="most open connections; the server closes the next one")
    header_seconds: Seconds = Field(
        10, description="longest time to receive a request's header; then the connection closes"
    )
    body_seconds: Seconds = Field(
        60, description="longest time to receive a request's body; then the request gets status 408"
    )
    write_seconds: Seconds = Field(
        60,
        description="longest time in which a client reads nothing of its answer; then the connection closes",
    )
