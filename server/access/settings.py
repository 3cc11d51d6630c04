"""Settings for access to the server."""

from pathlib import Path

from pydantic import BaseModel, Field


class AccessSettings(BaseModel):
    """Access to the server. Without keys it is open to everybody who can reach it."""

    api_keys_file: Path | None = Field(
        None, description="file of the API keys that open the server; `prismoe key NAME FILE` adds one"
    )
    open_metrics: bool = Field(False, description="serve /metrics without a key")
