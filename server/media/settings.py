"""Settings for a request's images and videos."""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import BaseModel, Field, field_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MediaSettings(BaseModel):
    """Limits on images and videos. vLLM's own options limit their sources and their number in a request."""

    max_image_mib: Positive = Field(20, description="largest file of an image")
    max_image_pixels: Annotated[int, Field(gt=0)] = Field(
        25_000_000,
        description="most pixels of an image or of a video's frame; a decoded pixel takes three bytes",
    )
    max_video_mib: Positive = Field(
        64,
        description="largest file of a video; --max-body-mib also limits a video that the request contains",
    )
    max_video_seconds: Positive = Field(300, description="longest duration of a video")
    max_video_frames: Annotated[int, Field(gt=0)] = Field(
        10_000, description="most frames in a video's file; the server decodes most of them to sample a few"
    )
    max_video_pixels: Annotated[int, Field(gt=0)] = Field(
        250_000_000, description="most pixels in all sampled frames of a video together"
    )
    decode_seconds: Positive = Field(30, description="longest time to decode a video")
    max_media_mib: Annotated[int, Field(gt=0)] = Field(
        2048,
        description="most memory for the files and pixels of all images and videos; the next request gets "
        "status 429",
    )
    fetch_seconds: Positive = Field(10, description="longest time to fetch an image or a video")
    fetch_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (),
        description="private networks in which servers of --allowed-media-domains may be, such as "
        "10.1.0.0/16,fd00::/8",
    )

    @field_validator("fetch_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @property
    def max_image_bytes(self) -> int:
        """`max_image_mib` in bytes."""
        return int(self.max_image_mib * 2**20)

    @property
    def max_video_bytes(self) -> int:
        """`max_video_mib` in bytes."""
        return int(self.max_video_mib * 2**20)
