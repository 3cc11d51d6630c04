"""Settings of what a request's images and videos may be."""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import BaseModel, Field, field_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MediaSettings(BaseModel):
    """Bounds on an image or a video. vLLM's own options say whence they come, and how many a request has."""

    max_image_mib: Positive = Field(20, description="largest file of an image")
    max_image_pixels: Annotated[int, Field(gt=0)] = Field(
        25_000_000,
        description="most pixels of an image or of a video's frame; each takes three bytes when decoded",
    )
    max_video_mib: Positive = Field(
        64, description="largest file of a video; one inside the request counts for --max-body-mib, too"
    )
    max_video_seconds: Positive = Field(300, description="longest video")
    max_video_frames: Annotated[int, Field(gt=0)] = Field(
        10_000, description="most frames in a video's file; the server decodes most of them to sample a few"
    )
    max_video_pixels: Annotated[int, Field(gt=0)] = Field(
        250_000_000, description="most pixels of all frames that the model's loader samples of a video"
    )
    decode_seconds: Positive = Field(30, description="most time to decode a video")
    max_media_mib: Annotated[int, Field(gt=0)] = Field(
        2048,
        description="most of all images and videos at a time, files and pixels; the next gets status 429",
    )
    fetch_seconds: Positive = Field(10, description="most time to fetch an image or a video")
    fetch_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (),
        description="private networks, such as 10.1.0.0/16,fd00::/8, that may hold servers of "
        "--allowed-media-domains",
    )

    @field_validator("fetch_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        return value.split(",") if isinstance(value, str) else value

    @property
    def max_image_bytes(self) -> int:
        """What `max_image_mib` comes to."""
        return int(self.max_image_mib * 2**20)

    @property
    def max_video_bytes(self) -> int:
        """What `max_video_mib` comes to."""
        return int(self.max_video_mib * 2**20)
