"""Harmless metadata never make the server refuse a picture, damage is reported as damage, both quickly."""

import functools
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismoe.server.media.budget import MediaBudget
from prismoe.server.media.decode import decode as decode_within
from prismoe.server.media.refusal import MediaRefused
from tests.paths import DATA
from tests.server.media.pictures import (
    SIGNATURE,
    chunk,
    damaged,
    encoded,
    inserted,
    png,
    riff,
    segment,
    two_colours,
)

PICTURES = DATA / "pictures"
MIB = 2**20
ZEROS = zlib.compress(bytes(3 * MIB), 9)

PNG, JPEG, WEBP, GIF = (encoded(two_colours(size=(32, 16)), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF"))
PALETTE_PNG = encoded(two_colours("P", (32, 16)))

decode = functools.partial(decode_within, max_pixels=25_000_000, budget=MediaBudget(2048))


def refusal(data: bytes) -> str:
    with pytest.raises(MediaRefused) as refused:
        decode(data)
    return str(refused.value)


def check_same(data: bytes, original: bytes) -> None:
    picture = decode(data)
    assert picture.tobytes() == decode(original).tobytes() and picture.info == {}


@pytest.mark.parametrize("name", ["bad-crc-of-a-comment.png", "icc-3MB.png"])
def test_pictures_that_were_once_refused(name: str) -> None:
    assert decode((PICTURES / name).read_bytes()).size == (64, 64)


HARMLESS_CHUNKS = {
    "text": chunk(b"tEXt", b"Comment\0text"),
    "damaged text": damaged(chunk(b"tEXt", b"Comment\0text")),
    "damaged profile": damaged(chunk(b"iCCP", b"p\0\0" + zlib.compress(b"profile"))),
    "damaged time": damaged(chunk(b"tIME", bytes(7))),
    "damaged EXIF": damaged(chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0")),
    "damaged private": damaged(chunk(b"prVt", b"x")),
    "damaged transparency": damaged(chunk(b"tRNS", b"\0\xff\0\0\0\0")),
    "large text": chunk(b"tEXt", b"k\0" + b"x" * (3 * MIB)),
    "large packed text": chunk(b"zTXt", b"k\0\0" + ZEROS),
    "large international text": chunk(b"iTXt", b"k\0\1\0\0\0" + ZEROS),
    "large XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + ZEROS),
    "large raw EXIF": chunk(b"zTXt", b"Raw profile type exif\0\0" + ZEROS),
    "large profile": chunk(b"iCCP", b"p\0\0" + ZEROS),
    "large EXIF": chunk(b"eXIf", bytes(3 * MIB)),
    "large private": chunk(b"prVt", bytes(3 * MIB)),
    "text without a keyword": chunk(b"tEXt", b"\xff"),
    "text that is not packed": chunk(b"zTXt", b"k\0\0not zlib"),
    "raw EXIF that is not packed": chunk(b"zTXt", b"Raw profile type exif\0\0not zlib"),
    "raw EXIF that is not hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\n\n\nxyz"),
    "text of an unknown method": chunk(b"zTXt", b"k\0\7x"),
    "profile of an unknown method": chunk(b"iCCP", b"p\0\7x"),
    "profile without a name": chunk(b"iCCP", b"p"),
    "empty": b"".join(
        chunk(name, b"") for name in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"iCCP", b"eXIf", b"iTXt")
    ),
    "short transparency": chunk(b"tRNS", b"\0"),
    "long transparency": chunk(b"tRNS", bytes(300)),
    "short animation": chunk(b"acTL", b"\0") + chunk(b"fcTL", b"\0"),
    "animation out of order": chunk(b"acTL", b"\0\0\0\2\0\0\0\0") + chunk(b"fcTL", b"\xff" * 26),
    "animation twice": chunk(b"acTL", bytes(8)) * 2,
}


@pytest.mark.parametrize("part", HARMLESS_CHUNKS.values(), ids=HARMLESS_CHUNKS.keys())
@pytest.mark.parametrize("original", [PNG, PALETTE_PNG], ids=["RGB", "palette"])
def test_harmless_chunks(part: bytes, original: bytes) -> None:
    check_same(inserted(original, part), original)
    check_same(inserted(original, part, before=b"IDAT"), original)
    check_same(inserted(original, part, before=b"IEND"), original)


def test_harmless_trailing_bytes_of_a_png() -> None:
    check_same(PNG[:-12], PNG)
    check_same(damaged(PNG), PNG)
    check_same(PNG + b"junk" * 100, PNG)
    check_same(PNG[:-12] + chunk(b"tEXt", b"k\0text")[:-6], PNG)
    check_same(PNG[:-12] + b"\xff\xff\xff\xfftEXtk\0text", PNG)


def test_metadata_between_pixels() -> None:
    start = PNG.index(b"IDAT") - 4
    length = int.from_bytes(PNG[start : start + 4])
    pixels = PNG[start + 8 : start + 8 + length]
    pieces = chunk(b"IDAT", pixels[:9]) + chunk(b"tEXt", b"k\0text") + chunk(b"IDAT", pixels[9:])
    check_same(PNG[:start] + pieces + PNG[start + 12 + length :], PNG)


HARMLESS_SEGMENTS = {
    "comment": segment(0xFE, b"text"),
    "empty": b"".join(segment(marker, b"") for marker in (*range(0xE0, 0xF0), 0xFE)),
    "no length": b"\xff\xfe\0\0",
    "short JFIF": segment(0xE0, b"JFIF\0"),
    "short Adobe": segment(0xEE, b"Adobe"),
    "short profile": segment(0xE2, b"ICC_PROFILE\0"),
    "profile without its other parts": segment(0xE2, b"ICC_PROFILE\0\1\7" + bytes(100)),
    "large profile": b"".join(
        segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 60]) + bytes(60_000)) for n in range(1, 61)
    ),
    "short Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\4\4"),
    "Photoshop's resolution": segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\1x"),
    "index of pictures": segment(0xE2, b"MPF\0garbage"),
    "short index of pictures": segment(0xE2, b"MPF\0"),
    "XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
    "thumbnail": segment(0xE0, b"JFXX\0\x10" + JPEG),
    "garbage": segment(0xE5, b"\xff\xd9\xff\xda\xff\xc0"),
}


@pytest.mark.parametrize("part", HARMLESS_SEGMENTS.values(), ids=HARMLESS_SEGMENTS.keys())
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_harmless_segments(part: bytes, mode: str) -> None:
    for options in ({}, {"progressive": True}):
        original = encoded(two_colours(mode, (32, 16)), "JPEG", **options)
        check_same(inserted(original, part), original)


PROGRESSIVE = encoded(two_colours(size=(32, 16)), "JPEG", progressive=True)


def test_metadata_and_junk_between_the_scans_and_after_the_image() -> None:
    last = PROGRESSIVE.rindex(b"\xff\xda")
    between = segment(0xFE, b"text") + segment(0xE2, b"MPF\0") + segment(0xE1, b"Exif\0\0") + b"\xff\xff"
    check_same(PROGRESSIVE[:last] + between + PROGRESSIVE[last:], PROGRESSIVE)
    check_same(PROGRESSIVE + PROGRESSIVE, PROGRESSIVE)
    check_same(PROGRESSIVE + b"\xff\xda" * 1000, PROGRESSIVE)
    check_same(inserted(PROGRESSIVE, segment(0xFE, b""), bytes(1000), b"\xff\0" * 1000), PROGRESSIVE)


def test_many_scans() -> None:
    """Each scan changes all pixels: 1,000 scans of 42 bytes took 24 s at 25 million pixels."""
    last = PROGRESSIVE.rindex(b"\xff\xda")
    scans = PROGRESSIVE.count(b"\xff\xda")
    assert decode(PROGRESSIVE[:-2] + PROGRESSIVE[last:-2] * (100 - scans) + b"\xff\xd9").size == (32, 16)
    more = PROGRESSIVE[:-2] + PROGRESSIVE[last:-2] * (101 - scans) + b"\xff\xd9"
    assert refusal(more) == "it is a JPEG with more than 100 scans"


@pytest.mark.parametrize("at", range(4, 98))
def test_a_broken_index_of_pictures(at: int) -> None:
    mpo = encoded(two_colours(size=(32, 16)), "MPO", save_all=True, append_images=[two_colours()])
    broken = bytearray(mpo)
    broken[mpo.index(b"MPF\0") + at] ^= 0xFF
    check_same(bytes(broken), mpo)


VP8X = (b"VP8X", b"\x2c\0\0\0\x1f\0\0\x0f\0\0")
PIXELS = (b"VP8 ", WEBP[20:])


@pytest.mark.parametrize(
    "chunks",
    [
        [VP8X, (b"ICCP", b"x"), PIXELS],
        [VP8X, (b"ICCP", bytes(3 * MIB)), PIXELS],
        [VP8X, PIXELS],  # with flags for missing parts
        [VP8X, PIXELS, (b"EXIF", b"")],
        [VP8X, PIXELS, (b"EXIF", b"garbage"), (b"XMP ", b"\xff\xfe")],
        [VP8X, PIXELS, (b"EXIF", bytes(3 * MIB)), (b"XMP ", bytes(3 * MIB))],
        [VP8X, (b"EXIF", b"x"), (b"????", b"x"), PIXELS, (b"ICCP", b"x")],
        [(b"????", b"xyz"), PIXELS],
        [PIXELS, (b"EXIF", b"Exif\0\0MM\0*"), (b"????", b"xyz")],
    ],
)
def test_harmless_chunks_of_a_webp(chunks: list[tuple[bytes, bytes]]) -> None:
    data = riff(*chunks)
    check_same(data, WEBP)
    check_same(data + b"junk", WEBP)


def test_a_webp_whose_last_chunk_is_cut_short() -> None:
    data = riff(VP8X, PIXELS, (b"EXIF", bytes(100)))
    for length in (1, 50, 99, 101, 107):
        check_same(data[:-length], WEBP)


HARMLESS_EXTENSIONS = {
    "comment": b"!\xfe\4text\0",
    "empty comment": b"!\xfe\0",
    "long comment": b"!\xfe" + (b"\xff" + bytes(255)) * 12_000 + b"\0",
    "empty application": b"!\xff\0",
    "application": b"!\xff\x0bNETSCAPE2.0\0",
    "short loop": b"!\xff\x0bNETSCAPE2.0\1\1\0",
    "XMP": b"!\xff\x0bXMP DataXMP" + b"\4<x/>" + b"\0",
    "empty text": b"!\1\0",
    "unknown": b"!\xab\0",
    "short control": b"!\xf9\1\1\0",
    "empty control": b"!\xf9\0",
}


@pytest.mark.parametrize("part", HARMLESS_EXTENSIONS.values(), ids=HARMLESS_EXTENSIONS.keys())
def test_harmless_extensions(part: bytes) -> None:
    check_same(inserted(GIF, part), GIF)
    check_same(inserted(GIF, part, part), GIF)


def test_the_transparency_of_a_gif_stays() -> None:
    image = two_colours("P", (32, 16))
    clear = encoded(image, "GIF", transparency=image.getpixel((0, 0)))
    assert decode(clear).getpixel((0, 0)) == (255, 255, 255)
    check_same(inserted(clear, b"!\xfe\4text\0"), clear)


def cut(data: bytes, name: bytes) -> bytes:
    return data[: data.index(name) + 6]


@pytest.mark.parametrize(
    "data",
    [
        PNG.replace(b"\x08\2\0\0\0", b"\x08\2\0\0\0".translate(bytes.maketrans(b"\x08", b"\x10"))),
        inserted(PNG, damaged(chunk(b"PLTE", b"abc"))),
        PALETTE_PNG.replace(b"PLTE", b"PLTe"),
        PNG.replace(b"IDAT", b"IDAt"),
        PNG[:-13] + b"?" + PNG[-12:],  # the checksum of IDAT
        SIGNATURE + PNG[33:],
        SIGNATURE + chunk(b"IHDR", bytes(5)) + PNG[33:],
        png(4, 4, chunk(b"PLTE", b"abc" * 257), colour=3, data=bytes(20)),
        *(cut(PNG, name) for name in (b"IHDR", b"IDAT")),
        *(cut(JPEG, name) for name in (b"\xff\xe0", b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xda")),
        JPEG.replace(b"\xff\xdb\0C\0", b"\xff\xdb\0\7\0"),
        JPEG.replace(b"\xff\xda", b"\xff\xd9"),
        riff(VP8X),
        riff((b"VP8 ", WEBP[20:-40])),
        riff((b"VP8 ", bytes(40))),
        WEBP[:-40],
        b"RIFF\xff\xff\xff\xffWEBP",
        GIF[:-20],
        GIF[:13],
        inserted(GIF, b"!\xfe\xff"),
        b"GIF89a",
    ],
)
def test_damage_is_reported_as_damage(data: bytes) -> None:
    assert refusal(data) == "it is damaged or cut short"


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xc0\0\x11\x0c",
        b"\xff\xc1\0\x11\x10",
        b"\xff\xc5\0\x11\x08",
        b"\xff\xcb\0\x11\x08",
        b"\xff\xcf\0\x11\x08",
    ],
)
def test_rare_kinds_of_jpeg_are_named(frame: bytes) -> None:
    assert "it is a JPEG of a rare kind" in refusal(JPEG.replace(b"\xff\xc0\0\x11\x08", frame))
    two = segment(0xC0, b"\x08\0\x08\0\x08\2\1\x11\0\2\x11\0")
    assert "it is a JPEG of a rare kind" in refusal(b"\xff\xd8" + two)


BOMBS = [
    inserted(PNG, chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(MIB - 1), 9)) * 10_000),
    inserted(PNG, chunk(b"zTXt", b"Raw profile type exif\0\0" + ZEROS) * 3_000),
    inserted(PNG, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + ZEROS) * 3_000),
]
"""A few megabytes that unpack to ten gigabytes."""


@pytest.mark.parametrize("data", BOMBS)
def test_bombs_are_not_unpacked(data: bytes) -> None:
    tracemalloc.start()
    try:
        check_soon(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(data) + 8 * MIB


@pytest.mark.parametrize(
    "data",
    [
        inserted(PNG, chunk(b"IDAT", b"") * 90_000, before=b"IEND"),
        inserted(JPEG, segment(0xE1, b"Exif\0\0" + bytes(200)) * 90_000),
        inserted(JPEG, segment(0xFE, b"text") * 90_000),
        inserted(JPEG, b"\xff" * 10_000_000),
        inserted(JPEG, b"\xff\0" * 5_000_000),
        riff(VP8X, PIXELS, *[(b"EXIF", bytes(100))] * 90_000),
        inserted(GIF, b"!\xfe\1x\0" * 90_000),
    ],
)
def test_large_metadata_are_read_quickly(data: bytes) -> None:
    check_soon(data)


def check_soon(data: bytes) -> None:
    start = time.monotonic()
    assert decode(data).size == (32, 16)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "data",
    [
        inserted(PNG, chunk(b"prVt", b"") * 1_000_000),
        inserted(JPEG, segment(0xFE, b"") * 1_000_000),
        riff(PIXELS, *[(b"????", b"")] * 1_000_000),
        inserted(GIF, b"!\xfe\0" * 1_000_000),
        inserted(GIF, bytes(10_000_000)),
    ],
)
def test_a_file_with_too_many_parts(data: bytes) -> None:
    start = time.monotonic()
    assert refusal(data) == "its file has more than 100,000 parts"
    assert time.monotonic() - start < 5


ANCILLARY = [
    b"tEXt",
    b"zTXt",
    b"iTXt",
    b"iCCP",
    b"eXIf",
    b"gAMA",
    b"tIME",
    b"acTL",
    b"fcTL",
    b"fdAT",
    b"abCd",
]
APPLICATION = [*range(0xE0, 0xF0), 0xFE]


@given(st.lists(st.tuples(st.sampled_from(ANCILLARY), st.binary(max_size=60), st.booleans()), max_size=6))
def test_any_ancillary_chunks(parts: list[tuple[bytes, bytes, bool]]) -> None:
    chunks = [chunk(name, body) if is_whole else damaged(chunk(name, body)) for name, body, is_whole in parts]
    assert decode(inserted(PNG, *chunks)).size in ((32, 16), (16, 32))


@given(st.lists(st.tuples(st.sampled_from(APPLICATION), st.binary(max_size=60)), max_size=6))
def test_any_application_segments(parts: list[tuple[int, bytes]]) -> None:
    assert decode(inserted(JPEG, *(segment(*part) for part in parts))).size == (32, 16)
