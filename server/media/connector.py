"""The media connector through which vLLM reads a request's images and videos, under prismoe's rules."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.multimodal.media import (
    MEDIA_CONNECTOR_REGISTRY,
    ImageMediaIO,
    MediaConnector,
    MediaIO,
    MediaWithBytes,
    VideoMediaIO,
)

from prismoe.server.environment import MEDIA_CONNECTOR
from prismoe.server.media.budget import BudgetSpent, MediaBudget
from prismoe.server.media.data_url import read_data_url
from prismoe.server.media.decode import decode
from prismoe.server.media.fetch import fetch
from prismoe.server.media.local import read_local
from prismoe.server.media.origins import AllowedOrigins
from prismoe.server.media.refusal import MediaRefused
from prismoe.server.media.settings import MediaSettings
from prismoe.server.media.videos.frames import Video, decode_video

DECODERS = ThreadPoolExecutor(4, thread_name_prefix="decode")
"""The threads that decode images outside the event loop."""

VIDEO_DECODERS = ThreadPoolExecutor(2, thread_name_prefix="decode-video")
"""The threads that decode videos. A video takes seconds, so they are separate: no image waits for a video."""

T = TypeVar("T")

FULL = "The server holds too many large images and videos: try again in a moment."


class Kind(NamedTuple):
    """The differences between files of images and of videos."""

    max_bytes: int
    accept: str
    """The media types that the request to a web server accepts."""


class File(NamedTuple):
    """An image's or a video's file."""

    data: bytes
    keep_with: Callable[[object], None]
    """Makes the file's bytes count against the budget as long as the given pixels exist."""


class RequestMedia(MediaConnector):
    """Reads a request's images and videos. One that is refused ends the request with 400 and a sentence."""

    settings = MediaSettings.model_validate({})
    budget = MediaBudget(settings.max_media_mib)

    def __init__(
        self,
        media_io_kwargs: dict[str, dict[str, Any]] | None = None,
        *,
        allowed_local_media_path: str = "",
        allowed_media_domains: list[str] | None = None,
    ) -> None:
        # vLLM's own __init__ is not called: it opens a cache on the disk, and a client that uses proxies.
        self.media_io_kwargs = media_io_kwargs or {}
        self._folder = Path(allowed_local_media_path).resolve() if allowed_local_media_path else None
        self._origins = AllowedOrigins(allowed_media_domains)

    async def load_from_url_async(
        self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None
    ) -> Any:
        """Return the image or video at `url`.

        Raises VLLMValidationError if it is refused, and GracefulHTTPError if the budget has no room for it.
        `fetch_timeout` is ignored: `MediaSettings` has the time limit.
        """
        noun = "A video" if isinstance(media_io, VideoMediaIO) else "An image"
        try:
            if isinstance(media_io, VideoMediaIO):
                return await self._video(url, media_io)
            if isinstance(media_io, ImageMediaIO):
                return await self._image(url, media_io)
            raise VLLMValidationError("This server takes only images and videos: leave other media out.")
        except MediaRefused as refusal:
            raise VLLMValidationError(f"{noun} of the request can't be read: {refusal}.") from refusal
        except BudgetSpent as spent:
            raise GracefulHTTPError(FULL, HTTPStatus.TOO_MANY_REQUESTS) from spent

    def load_from_url(self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None) -> Any:
        """Return the image or video at `url`, for callers without an event loop."""
        return asyncio.run(self.load_from_url_async(url, media_io, fetch_timeout=fetch_timeout))

    async def _image(self, url: str, media_io: ImageMediaIO) -> MediaWithBytes[Any]:
        max_pixels, background = self.settings.max_image_pixels, media_io.rgba_background_color
        async with self._file(url, Kind(self.settings.max_image_bytes, "image/*")) as file:
            image = await _run_in(DECODERS, decode, file.data, max_pixels, self.budget, background)
            file.keep_with(image)
        return MediaWithBytes(image, file.data)

    async def _video(self, url: str, media_io: VideoMediaIO) -> Video:
        async with self._file(url, Kind(self.settings.max_video_bytes, "video/*")) as file:
            video: Video = await _run_in(
                VIDEO_DECODERS, decode_video, file.data, media_io, self.settings, self.budget
            )
            file.keep_with(video.media[0])
        return video

    @asynccontextmanager
    async def _file(self, url: str, kind: Kind) -> AsyncIterator[File]:
        """Yield the file at `url`. Its bytes count against the budget until the block ends.

        After `keep_with` they count until the pixels are collected.
        """
        taken, kept = 0, False

        def take(count: int) -> None:
            nonlocal taken
            self.budget.take(count)
            taken += count

        def keep_with(pixels: object) -> None:
            nonlocal kept
            self.budget.give_back_after(pixels, taken)
            kept = True

        try:
            yield File(await self._bytes(url, kind, take), keep_with)
        finally:
            if not kept:
                self.budget.give_back(taken)

    async def _bytes(self, url: str, kind: Kind, take: Callable[[int], None]) -> bytes:
        """Return the bytes at `url`, after passing their number to `take`. Raises MediaRefused."""
        settings, scheme = self.settings, url.partition(":")[0].strip().lower()
        if scheme in ("http", "https"):
            return await fetch(
                self._origins.checked(url),
                take,
                accept=kind.accept,
                max_bytes=kind.max_bytes,
                timeout_s=settings.fetch_seconds,
                networks=settings.fetch_networks,
            )
        if scheme == "data":
            data = await _run_in(DECODERS, read_data_url, url, kind.max_bytes)
        elif scheme == "file":
            data = await _run_in(DECODERS, read_local, url, self._folder, kind.max_bytes)
        else:
            raise MediaRefused("its URL must begin with data:, https:, http: or file:")
        take(len(data))
        return data


async def _run_in(threads: ThreadPoolExecutor, work: Callable[..., T], *arguments: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work, *arguments)


def use_media(settings: MediaSettings) -> None:
    """Make vLLM read images and videos with these settings in this process."""
    shared = {"settings": settings, "budget": MediaBudget(settings.max_media_mib)}
    connector = type(RequestMedia.__name__, (RequestMedia,), shared)
    MEDIA_CONNECTOR_REGISTRY.register(MEDIA_CONNECTOR)(connector)
