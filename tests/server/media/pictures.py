"""Pictures in the forms that a client can send."""

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
    """A PNG whose header has this size, for any data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        SIGNATURE
        + header
        + b"".join(before_data)
        + chunk(b"IDAT", zlib.compress(data, 9))
        + chunk(b"IEND", b"")
    )


def damaged(part: bytes) -> bytes:
    """A PNG chunk with a wrong checksum."""
    return part[:-1] + bytes([part[-1] ^ 1])


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP with these chunks."""
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def inserted(data: bytes, *parts: bytes, before: bytes = b"") -> bytes:
    """A PNG, JPEG or GIF with parts after its header, or before the PNG's first chunk of this name."""
    if before:
        at = data.index(before) - 4
    elif data.startswith(SIGNATURE):
        at = data.index(b"IHDR") + 4 + 13 + 4
    elif data.startswith(b"GIF"):
        at = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    else:
        at = len(b"\xff\xd8")
    return data[:at] + b"".join(parts) + data[at:]


def rows(values: Sequence[Sequence[int]], sample_bytes: int) -> bytes:
    """A PNG's unfiltered scan lines."""
    return b"".join(b"\0" + b"".join(value.to_bytes(sample_bytes, "big") for value in row) for row in values)
