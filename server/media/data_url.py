"""Images and videos inside the request."""

import base64
import binascii

from prismoe.server.media.refusal import MediaRefused

SPACE = " \t\r\n\f"
STANDARD = bytes.maketrans(b"-_", b"+/")


def read_data_url(url: str, max_bytes: int) -> bytes:
    """The bytes of `data:image/png;base64,…`; its media type is not believed. Raises MediaRefused.

    White space, missing padding, the URL-safe alphabet and percent-encoding (RFC 2397) are taken.
    """
    header, comma, text = url.partition(",")
    if not comma or "base64" not in map(str.strip, header.lower().split(";")[1:]):
        raise MediaRefused("its data URL is not data:TYPE;base64, and base64 text")
    too_large = MediaRefused(f"it has more than {max_bytes:,} bytes")
    most = 4 * (max_bytes // 3 + 1)
    # Nothing is copied of a text that is too long even if all that it escapes is white space.
    if len(text) - sum(map(text.count, SPACE)) - 3 * text.count("%") > most:
        raise too_large
    try:
        digits = _digits(text.encode("ascii"))
        if len(digits) > most:
            raise too_large
        data = base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaRefused("its data URL is not base64") from error
    if not data:
        raise MediaRefused("its data URL is empty")
    if len(data) > max_bytes:
        raise too_large
    return data


def _digits(text: bytes) -> bytes:
    """The text in base64's standard alphabet, without white space, escapes and padding."""
    text = text.translate(STANDARD, SPACE.encode())
    if b"%" in text:
        # Quoted-printable escapes with "=" for "%", and is decoded in C: urllib takes 17 s for 32 MiB.
        text = binascii.a2b_qp(text.replace(b"=", b"=3D").replace(b"%", b"="))
        text = text.translate(STANDARD, SPACE.encode())
    return text.rstrip(b"=")
