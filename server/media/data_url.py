"""Reads images and videos that a request contains as data URLs."""

import base64
import binascii

from prismoe.server.media.refusal import MediaRefused

WHITE_SPACE = " \t\r\n\f"
TO_STANDARD = bytes.maketrans(b"-_", b"+/")
"""Turns base64's URL-safe alphabet into the standard one."""


def read_data_url(url: str, max_bytes: int) -> bytes:
    """Return the bytes of a URL such as `data:image/png;base64,…`. Its media type is ignored.

    White space, missing padding, the URL-safe alphabet and percent-encoding (RFC 2397) are accepted. Raises
    MediaRefused.
    """
    header, comma, text = url.partition(",")
    if not comma or "base64" not in map(str.strip, header.lower().split(";")[1:]):
        raise MediaRefused("its data URL must have the form data:TYPE;base64,TEXT")
    too_large = MediaRefused(f"it has more than {max_bytes:,} bytes")
    max_digits = 4 * (max_bytes // 3 + 1)
    # A text that is too long, even if all its escapes are white space, is refused before it is copied.
    if len(text) - sum(map(text.count, WHITE_SPACE)) - 3 * text.count("%") > max_digits:
        raise too_large
    try:
        digits = _digits(text.encode("ascii"))
        if len(digits) > max_digits:
            raise too_large
        data = base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaRefused("the text of its data URL is not base64") from error
    if not data:
        raise MediaRefused("its data URL is empty")
    if len(data) > max_bytes:
        raise too_large
    return data


def _digits(text: bytes) -> bytes:
    """Return the text in base64's standard alphabet, without white space, escapes and padding."""
    text = text.translate(TO_STANDARD, WHITE_SPACE.encode())
    if b"%" in text:
        # Quoted-printable escapes with "=" instead of "%", and is decoded in C. urllib takes 17 s for 32 MiB.
        text = binascii.a2b_qp(text.replace(b"=", b"=3D").replace(b"%", b"="))
        text = text.translate(TO_STANDARD, WHITE_SPACE.encode())
    return text.rstrip(b"=")
