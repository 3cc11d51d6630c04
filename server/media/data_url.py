"""Images inside the request."""

import base64
import binascii

from prismoe.server.media.refusal import ImageRefused


def read_data_url(url: str, max_bytes: int) -> bytes:
    """The bytes of `data:image/png;base64,…`; its media type is not believed. Raises ImageRefused."""
    header, comma, text = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ImageRefused("its data URL is not data:image/png;base64, and base64 text")
    too_large = ImageRefused(f"it has more than {max_bytes:,} bytes")
    if len(text) > 4 * (max_bytes // 3 + 1):
        raise too_large
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageRefused("its data URL is not base64") from error
    if not data:
        raise ImageRefused("its data URL is empty")
    if len(data) > max_bytes:
        raise too_large
    return data
