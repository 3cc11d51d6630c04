"""Settings of who may use the server."""

from pathlib import Path

from pydantic import BaseModel, Field


class AccessSettings(BaseModel):
    """Without keys the server is open to all who reach it."""

    api_keys_file: Path | None = Field(
        None, description="API keys that open the server; `prismoe key NAME FILE` adds one"
    )
    open_metrics: bool = Field(False, description="/metrics needs no key")
