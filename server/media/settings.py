"""Settings of what a request's images may be."""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import BaseModel, Field, field_validator


class MediaSettings(BaseModel):
    """Bounds on an image. vLLM's own options say where images may come from, and how many a request has."""

    max_image_mib: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        20, description="the file of an image"
    )
    max_image_pixels: Annotated[int, Field(gt=0)] = Field(
        25_000_000, description="the pixels of an image, which take three bytes each once decoded"
    )
    max_images_mib: Annotated[int, Field(gt=0)] = Field(
        2048, description="all images together, their files and pixels; a request with more gets a 429"
    )
    fetch_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        10, description="fetching an image, in all"
    )
    fetch_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (),
        description="private networks, such as 10.1.0.0/16,fd00::/8, in which servers of "
        "--allowed-media-domains may lie",
    )

    @field_validator("fetch_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @property
    def max_image_bytes(self) -> int:
        """What `max_image_mib` comes to."""
        return int(self.max_image_mib * 2**20)
