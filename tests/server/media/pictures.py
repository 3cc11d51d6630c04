"""Pictures in the forms that a client may send them."""

import io
import struct
import zlib
from collections.abc import Sequence

from PIL import Image

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def two_colours(mode: str = "RGB", size: tuple[int, int] = (8, 4)) -> Image.Image:
    """The left half red, the right half blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    width: int, height: int, *before_data: bytes, depth: int = 8, colour: int = 0, data: bytes = b""
) -> bytes:
    """A PNG whose header says this size, whatever its data are."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        SIGNATURE
        + header
        + b"".join(before_data)
        + chunk(b"IDAT", zlib.compress(data, 9))
        + chunk(b"IEND", b"")
    )


def rows(values: Sequence[Sequence[int]], sample_bytes: int) -> bytes:
    """A PNG's unfiltered scan lines."""
    return b"".join(b"\0" + b"".join(value.to_bytes(sample_bytes, "big") for value in row) for row in values)
