"""Removes the metadata from an image's file, and keeps the metadata that may hold the image's orientation.

The pixels don't need texts, profiles, thumbnails and comments, but Pillow reads them. Some of them make it
refuse the image, some unpack to gigabytes, and some take it minutes.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from prismoe.server.media.refusal import DAMAGED, MediaRefused

T = TypeVar("T")

Info = dict[str, bytes | str]
"""A part of Pillow's `Image.info`, with Pillow's keys."""


class Bare(NamedTuple):
    """An image's file without metadata, and the metadata that may hold its orientation."""

    file: bytes
    info: Info


MAX_BYTES = 2**18
"""The most bytes of EXIF or XMP that are read. A JPEG has at most 64 KiB, or 128 KiB in hexadecimal."""

MAX_PARTS = 100_000
"""The most chunks, segments or blocks of a file. Each takes Python one or two microseconds."""


def bare(data: bytes) -> Bare:
    """Return the image without its metadata.

    Raises MediaRefused if the data are no image, and may raise any error if the image is damaged. Damage that
    Pillow detects is not looked for here.
    """
    if data.startswith(PNG_SIGNATURE):
        return _bare_png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _bare_jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _bare_webp(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _bare_gif(data)
    raise MediaRefused("it is not a PNG, JPEG, WebP or GIF")


def _counted(parts: Iterator[T]) -> Iterator[T]:
    for number, part in enumerate(parts):
        if number == MAX_PARTS:
            raise MediaRefused(f"its file has more than {MAX_PARTS:,} parts")
        yield part


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3
PALETTE_COLOURS = 256

ORIENTING_TEXTS = ("XML:com.adobe.xmp", "Raw profile type exif")
"""The keywords of PNG texts that may hold the orientation."""


def _bare_png(data: bytes) -> Bare:
    """Return a PNG without its metadata. Raises MediaRefused if a chunk of its picture is damaged.

    Other damaged chunks are left out. So are the later frames of an animation: IDAT has the first frame, or
    the image for viewers that show no animations.
    """
    header = palette = transparency = b""
    pixels: list[memoryview] = []
    info: Info = {}
    for name, body, is_whole in _counted(_png_chunks(data)):
        if not is_whole:
            if name in (b"IHDR", b"PLTE", b"IDAT"):
                raise MediaRefused(DAMAGED)
        elif name == b"IDAT":
            pixels.append(body)
        elif name == b"IHDR":
            header = header or bytes(body)
        elif name == b"PLTE":
            palette = palette or bytes(body)
        elif name == b"tRNS":
            transparency = transparency or bytes(body)
        elif name == b"eXIf":
            info.setdefault("exif", bytes(body[:MAX_BYTES]))
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            keyword = bytes(body[:80]).partition(b"\0")[0].decode("latin-1")
            if keyword in ORIENTING_TEXTS and keyword not in info:
                info[keyword] = _png_text(name, bytes(body))
    file = [PNG_SIGNATURE, *_png_chunk(b"IHDR", header)]
    if palette:
        file += _png_chunk(b"PLTE", palette)
    if transparency := _png_transparency(transparency, depth=header[8], colour=header[9]):
        file += _png_chunk(b"tRNS", transparency)
    file += [*_png_chunk(b"IDAT", *pixels), *_png_chunk(b"IEND")]
    return Bare(b"".join(file), info)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Yield the name and body of each complete chunk, and whether its checksum is right."""
    view, at, name = memoryview(data), len(PNG_SIGNATURE), b""
    while at + 12 <= len(data) and name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if not name.isalpha() or end + 4 > len(data):
            break
        (checksum,) = struct.unpack_from(">I", data, end)
        yield name, view[at + 8 : end], zlib.crc32(view[at + 4 : end]) == checksum
        at = end + 4


def _png_chunk(name: bytes, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    checksum = zlib.crc32(name)
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return [struct.pack(">I", sum(map(len, parts))), name, *parts, struct.pack(">I", checksum)]


def _png_transparency(transparency: bytes, *, depth: int, colour: int) -> bytes:
    """Return the transparency (tRNS) in the depth that Pillow decodes to; empty if it is not valid.

    Pillow decodes 16-bit greys to 16 bits and all else to 8 bits, but compares the decoded samples with tRNS
    in the file's depth.
    """
    if colour == PALETTE:
        return transparency if len(transparency) <= PALETTE_COLOURS else b""
    if len(transparency) != {GREY: 2, RGB: 6}.get(colour):
        return b""
    samples = [sample % 2**depth for (sample,) in struct.iter_unpack(">H", transparency)]
    if depth < 8:
        samples = [sample * 255 // (2**depth - 1) for sample in samples]
    elif depth == 16 and colour == RGB:
        samples = [sample >> 8 for sample in samples]
    return struct.pack(f">{len(samples)}H", *samples)


def _png_text(name: bytes, body: bytes) -> str:
    """Return the text of a chunk, at most MAX_BYTES of it; empty if it can't be unpacked."""
    _, _, text = body.partition(b"\0")
    is_packed = name == b"zTXt" or (name == b"iTXt" and text.startswith(b"\1"))
    if name == b"zTXt":
        text = text[1:]  # The first byte is the method.
    elif name == b"iTXt":
        text = text[2:].split(b"\0", 2)[-1]  # Flag, method, language and translated keyword precede the text.
    if is_packed:
        try:
            text = zlib.decompressobj().decompress(text, MAX_BYTES)
        except zlib.error:
            text = b""
    return text[:MAX_BYTES].decode("latin-1")


START_OF_IMAGE, TEMPORARY, END_OF_IMAGE, SCAN = 0xD8, 0x01, 0xD9, 0xDA
APP0, APP1, APP14, APP15, COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE

MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
"""A marker that is neither an 0xff in a scan's data nor a restart marker between these data."""

FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
READABLE_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA}
"""The kinds of frames that are decoded. The others are hierarchical, or lossless with arithmetic coding."""

MAX_SEGMENT_BYTES = 2**16 - 1

MAX_SCANS = 100
"""The most scans. A scan of fifty bytes can visit all pixels of a progressive image. Ten are usual."""

EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
CHANNELS = {APP0: (b"JFIF", 14), APP14: (b"Adobe", 12)}
"""The segments that define the channels: their first bytes, and the smallest valid length."""


def _bare_jpeg(data: bytes) -> Bare:
    """Return a JPEG without comments, application segments other than CHANNELS, and data outside segments.

    Raises MediaRefused if it is of a kind that is not read.
    """
    view = memoryview(data)
    pieces: list[memoryview] = []
    scans = 0
    info: Info = {}
    for marker, start, end in _counted(_jpeg_segments(data)):
        body = data[start + 4 : min(end, start + 2 + MAX_SEGMENT_BYTES)]
        if marker in FRAMES and not (marker in READABLE_FRAMES and body[0] == 8 and body[5] in (1, 3, 4)):
            raise MediaRefused("it is a JPEG of a rare kind: send one with 8 bits and 1, 3 or 4 channels")
        scans += marker == SCAN
        if scans > MAX_SCANS:
            raise MediaRefused(f"it is a JPEG with more than {MAX_SCANS} scans")
        if marker == APP1 and body.startswith(EXIF):
            info.setdefault("exif", body)
        elif marker == APP1 and body.startswith(XMP):
            info.setdefault("xmp", body.removeprefix(XMP))
        beginning, min_length = CHANNELS.get(marker, (b"", 0))
        defines_channels = min_length and body.startswith(beginning) and len(body) >= min_length
        if defines_channels or not (marker == COMMENT or APP0 <= marker <= APP15):
            pieces.append(view[start:end])
    return Bare(b"".join(pieces), info)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker, start and end of each segment up to the image's end. A scan includes its data."""
    marker = at = 0
    while marker != END_OF_IMAGE and (match := MARKER.search(data, at)):
        start = match.start()
        marker = data[start + 1]
        if marker in (START_OF_IMAGE, TEMPORARY, END_OF_IMAGE):
            at = start + 2
        else:
            at = start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4]))
        if marker == SCAN:
            following = MARKER.search(data, at)
            at = following.start() if following else len(data)
        yield marker, start, at


WEBP_PIXELS = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"}
WEBP_ORIENTATION = {b"EXIF": ("exif", 0x08), b"XMP ": ("xmp", 0x04)}
"""For each chunk its key in `Image.info`, and the header's flag without which Pillow ignores it."""


def _bare_webp(data: bytes) -> Bare:
    """Return a WebP with only its chunks of pixels."""
    pieces: list[bytes | memoryview] = []
    info: Info = {}
    flags = data[20] if data[12:16] == b"VP8X" else 0
    for name, body in _counted(_webp_chunks(data)):
        if name in WEBP_PIXELS:
            pieces += [name, struct.pack("<I", len(body)), body, bytes(len(body) % 2)]
        elif name in WEBP_ORIENTATION:
            key, flag = WEBP_ORIENTATION[name]
            if flags & flag:
                info.setdefault(key, bytes(body[:MAX_BYTES]))
    size = len(b"WEBP") + sum(map(len, pieces))
    return Bare(b"".join([b"RIFF", struct.pack("<I", size), b"WEBP", *pieces]), info)


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the name and body of each complete chunk."""
    view, at = memoryview(data), 12
    last = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= last:
        name, length = struct.unpack_from("<4sI", data, at)
        end = at + 8 + length
        if end > last:
            break
        yield name, view[at + 8 : end]
        at = end + length % 2


GIF_HEADER_BYTES = 13
EXTENSION, FRAME, TRAILER = b"!", b",", b";"
GRAPHIC_CONTROL = 0xF9


def _bare_gif(data: bytes) -> Bare:
    """Return a GIF without the extensions before its first frame, except those about transparency."""
    at = _gif_start(data)
    pieces = [data[:at]]
    for start, end in _counted(_gif_blocks(data, at)):
        is_extension = data[start : start + 1] == EXTENSION
        if is_extension and data[start + 1] == GRAPHIC_CONTROL and data[start + 2] >= 4:
            pieces.append(data[start:end])
        at = end
    return Bare(b"".join([*pieces, data[at:]]), {})


def _gif_start(data: bytes) -> int:
    """Return the offset of the first block, after the header and its palette."""
    flags = data[10]
    return GIF_HEADER_BYTES + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)


def _gif_blocks(data: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each extension before the first frame, and of each other byte there."""
    while data[at : at + 1] not in (FRAME, TRAILER, b""):
        start = at
        if data[at : at + 1] == EXTENSION:
            at += 2
            while length := data[at]:
                at += 1 + length
        at += 1
        yield start, at
