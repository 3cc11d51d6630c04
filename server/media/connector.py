"""vLLM's way to a request's images, by prismoe's rules."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.multimodal.media import (
    MEDIA_CONNECTOR_REGISTRY,
    ImageMediaIO,
    MediaConnector,
    MediaIO,
    MediaWithBytes,
)

from prismoe.server.environment import MEDIA_CONNECTOR
from prismoe.server.media.budget import BudgetSpent, ImageBudget
from prismoe.server.media.data_url import read_data_url
from prismoe.server.media.decode import decode
from prismoe.server.media.fetch import fetch
from prismoe.server.media.local import read_local
from prismoe.server.media.origins import AllowedOrigins
from prismoe.server.media.refusal import ImageRefused
from prismoe.server.media.settings import MediaSettings

DECODERS = ThreadPoolExecutor(4, thread_name_prefix="decode")
"""Images are decoded here, off the event loop, so many at a time."""

T = TypeVar("T")

FULL = "The server holds too many large images: ask again in a moment."


class RequestMedia(MediaConnector):
    """Gets one image after the other; what is wrong with one is a 400 with a sentence."""

    settings = MediaSettings.model_validate({})
    budget = ImageBudget(settings.max_images_mib)

    def __init__(
        self,
        media_io_kwargs: dict[str, dict[str, Any]] | None = None,
        *,
        allowed_local_media_path: str = "",
        allowed_media_domains: list[str] | None = None,
    ) -> None:
        # Not vLLM's own __init__: it would open a cache on the disk and a client that takes proxies.
        self.media_io_kwargs = media_io_kwargs or {}
        self._folder = Path(allowed_local_media_path).resolve() if allowed_local_media_path else None
        self._origins = AllowedOrigins(allowed_media_domains)

    async def load_from_url_async(
        self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None
    ) -> Any:
        """The image at `url`. Raises VLLMValidationError, or GracefulHTTPError where there is no room for it.

        `fetch_timeout` is vLLM's; `MediaSettings` has the one in force.
        """
        try:
            if not isinstance(media_io, ImageMediaIO):
                raise ImageRefused("this model takes images only")
            return await self._image(url, media_io)
        except ImageRefused as refusal:
            raise VLLMValidationError(f"An image of the request can't be read: {refusal}.") from refusal
        except BudgetSpent as spent:
            raise GracefulHTTPError(FULL, HTTPStatus.TOO_MANY_REQUESTS) from spent

    def load_from_url(self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None) -> Any:
        """The same, for callers without an event loop."""
        return asyncio.run(self.load_from_url_async(url, media_io, fetch_timeout=fetch_timeout))

    async def _image(self, url: str, media_io: ImageMediaIO) -> MediaWithBytes[Any]:
        most, background = self.settings.max_image_pixels, media_io.rgba_background_color
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            self.budget.take(count)
            taken += count

        try:
            data = await self._file(url, take)
            image = await _in_thread(decode, data, most, self.budget, background)
        except BaseException:
            self.budget.give_back(taken)
            raise
        self.budget.give_back_after(image, taken)
        return MediaWithBytes(image, data)

    async def _file(self, url: str, take: Callable[[int], None]) -> bytes:
        """The file at `url`; `take` is told of its bytes."""
        settings, scheme = self.settings, url.partition(":")[0].strip().lower()
        if scheme in ("http", "https"):
            return await fetch(
                self._origins.checked(url),
                take,
                max_bytes=settings.max_image_bytes,
                timeout_s=settings.fetch_seconds,
                networks=settings.fetch_networks,
            )
        if scheme == "data":
            data = await _in_thread(read_data_url, url, settings.max_image_bytes)
        elif scheme == "file":
            data = await _in_thread(read_local, url, self._folder, settings.max_image_bytes)
        else:
            raise ImageRefused("its URL begins with none of data:, https: and file:")
        take(len(data))
        return data


async def _in_thread(work: Callable[..., T], *arguments: object) -> T:
    return await asyncio.get_running_loop().run_in_executor(DECODERS, work, *arguments)


def use_media(settings: MediaSettings) -> None:
    """Have vLLM get images by these settings, from now on and in this process."""
    shared = {"settings": settings, "budget": ImageBudget(settings.max_images_mib)}
    connector = type(RequestMedia.__name__, (RequestMedia,), shared)
    MEDIA_CONNECTOR_REGISTRY.register(MEDIA_CONNECTOR)(connector)
