"""Fetches a request's images as vLLM does, but blames the request where that fails (vLLM: 500 for some)."""

from typing import Any

import aiohttp
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector

from prismoe.server.environment import MEDIA_CONNECTOR


@MEDIA_CONNECTOR_REGISTRY.register(MEDIA_CONNECTOR)
class RequestMedia(MediaConnector):
    """vLLM's media connector, whose errors are 4xx sentences."""

    async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        """The media at `url`. Raises VLLMClientError where it can't be read."""
        try:
            return await super().load_from_url_async(url, media_io, fetch_timeout=fetch_timeout)
        except VLLMClientError:
            raise
        except (TimeoutError, ValueError, OSError, RuntimeError, aiohttp.ClientError) as error:
            # NotImplementedError is a RuntimeError. A system error's own text would show the server's paths.
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise VLLMValidationError(
                f"An image of the request can't be read: {reason.rstrip('.')}."
            ) from error
