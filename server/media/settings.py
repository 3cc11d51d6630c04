"""Settings of what a request's images and videos may be."""

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import BaseModel, Field, field_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class MediaSettings(BaseModel):
    """Bounds on an image or a video. vLLM's own options say whence they come, and how many a request has."""

    max_image_mib: Positive = Field(20, description="the file of an image")
    max_image_pixels: Annotated[int, Field(gt=0)] = Field(
        25_000_000,
        description="the pixels of an image or of a video's frame, which take three bytes each once decoded",
    )
    max_video_mib: Positive = Field(
        64, description="the file of a video; one in the request counts for --max-body-mib, too"
    )
    max_video_seconds: Positive = Field(300, description="the length of a video")
    max_video_frames: Annotated[int, Field(gt=0)] = Field(
        10_000, description="the frames of a video's file, most of which are decoded to get at a few"
    )
    max_video_pixels: Annotated[int, Field(gt=0)] = Field(
        250_000_000, description="the pixels of all frames that the model's loader samples of a video"
    )
    decode_seconds: Positive = Field(30, description="decoding a video, in all")
    max_media_mib: Annotated[int, Field(gt=0)] = Field(
        2048,
        description="all images and videos together, their files and pixels; a request with more gets a 429",
    )
    fetch_seconds: Positive = Field(10, description="fetching an image or a video, in all")
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

    @property
    def max_video_bytes(self) -> int:
        """What `max_video_mib` comes to."""
        return int(self.max_video_mib * 2**20)
