"""From bytes to RGB: the supported forms, and the messages for others."""

import functools
import io
import re
import time
import zlib
from typing import Any

import psutil
import pytest
from PIL import Image

from prismoe.server.media.budget import MediaBudget
from prismoe.server.media.decode import LONGEST_SIDE
from prismoe.server.media.decode import decode as decode_within
from prismoe.server.media.refusal import MediaRefused
from tests.server.media.pictures import BLUE, GREEN, RED, chunk, encoded, png, rows, two_colours

MAX_PIXELS = 25_000_000
BUDGET = MediaBudget(2048)
decode = functools.partial(decode_within, budget=BUDGET)
CLEAR = (0, 0, 0, 0)


def refusal(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """The reason why the bytes are refused. Checks that it comes quickly, without an address or a path."""
    start = time.monotonic()
    with pytest.raises(MediaRefused) as refused:
        decode(data, max_pixels)
    assert time.monotonic() - start < 2
    reason = str(refused.value)
    assert not re.search(r"0x[0-9a-f]|object|/|<|Error", reason)
    return reason


def near(colour: object, other: tuple[int, int, int], tolerance: int = 40) -> bool:
    assert isinstance(colour, tuple)
    return all(abs(one - two) <= tolerance for one, two in zip(colour, other, strict=True))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[(mode, "PNG") for mode in ("RGB", "RGBA", "P")],
        *[(mode, "WEBP") for mode in ("RGB", "RGBA")],
        *[(mode, "JPEG") for mode in ("RGB", "CMYK")],
        ("P", "GIF"),
    ],
)
def test_colours_stay(mode: str, kind: str) -> None:
    image = decode(encoded(two_colours(mode, (32, 16)), kind), MAX_PIXELS)
    assert image.mode == "RGB" and image.size == (32, 16)
    assert near(image.getpixel((4, 8)), RED) and near(image.getpixel((28, 8)), BLUE)


@pytest.mark.parametrize(
    "options", [{"keep_rgb": True}, {"subsampling": 0}, {"progressive": True}, {"smooth": 9}]
)
def test_colours_of_every_kind_of_jpeg(options: dict[str, object]) -> None:
    data = encoded(two_colours(size=(32, 16)), "JPEG", comment="text", icc_profile=bytes(200), **options)
    assert decode(data, MAX_PIXELS).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_greys_stay(mode: str) -> None:
    image = Image.new(mode, (2, 1), 0)
    image.putpixel((1, 0), (255, 255) if mode == "LA" else 255)
    picture = decode(encoded(image), MAX_PIXELS)
    assert picture.getpixel((0, 0)) == (
        (255, 255, 255) if mode == "LA" else (0, 0, 0)
    )  # transparent on white
    assert picture.getpixel((1, 0)) == (255, 255, 255)


def test_sixteen_bits_become_eight() -> None:
    data = png(4, 1, depth=16, data=rows([[0, 0x1234, 0x8000, 0xFFFF]], 2))
    assert [decode(data, MAX_PIXELS).getpixel((x, 0)) for x in range(4)] == [
        (v, v, v) for v in (0, 18, 128, 255)
    ]
    colours = png(2, 1, depth=16, colour=2, data=rows([[0xFFFF, 0, 0, 0, 0, 0x8000]], 2))
    assert decode(colours, MAX_PIXELS).getpixel((0, 0)) == RED


def test_transparent_pixels_show_the_background() -> None:
    image = Image.new("RGBA", (2, 1), CLEAR)
    image.putpixel((1, 0), (*RED, 255))
    for data in (
        encoded(image),
        encoded(image.convert("P"), transparency=image.convert("P").getpixel((0, 0))),
    ):
        assert decode(data, MAX_PIXELS).getpixel((0, 0)) == (255, 255, 255)
        assert decode(data, MAX_PIXELS, background=GREEN).getpixel((0, 0)) == GREEN


@pytest.mark.parametrize(
    ("depth", "colour", "clear", "data", "expected"),
    [
        (1, 0, b"\0\1", b"\0\x40", ["black", "clear"]),
        (2, 0, b"\0\1", b"\0\x10", ["black", "clear"]),
        (4, 0, b"\0\x0e", b"\0\xfe", ["white", "clear"]),
        (8, 0, b"\0\xfe", b"\0\0\xfe", ["black", "clear"]),
        (8, 0, b"\1\xfe", b"\0\0\xfe", ["black", "clear"]),  # only the low byte counts
        (8, 2, b"\0\xff\0\0\0\0", b"\0\0\0\0\xff\0\0", ["black", "clear"]),
        (16, 0, b"\x12\x34", rows([[0, 0x1234]], 2), ["black", "clear"]),
        (16, 0, b"\x12\x34", rows([[0, 0x1235]], 2), ["black", (18, 18, 18)]),
        (16, 2, b"\x12\x34" * 3, rows([[0, 0, 0, 0x1234, 0x1234, 0x1234]], 2), ["black", "clear"]),
    ],
)
def test_the_transparent_colour_of_a_png(
    depth: int, colour: int, clear: bytes, data: bytes, expected: list[str | tuple[int, int, int]]
) -> None:
    picture = decode(
        png(2, 1, chunk(b"tRNS", clear), depth=depth, colour=colour, data=data), MAX_PIXELS, background=GREEN
    )
    colours: dict[Any, Any] = {"black": (0, 0, 0), "white": (255, 255, 255), "clear": GREEN}
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [colours.get(each, each) for each in expected]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    assert near(decode(data, MAX_PIXELS).getpixel((8, 8)), RED)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 100), (100, 1), (LONGEST_SIDE, 100)])
def test_small_and_long_images(size: tuple[int, int]) -> None:
    assert decode(encoded(Image.new("RGB", size)), MAX_PIXELS).size == size


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((20_000, 1), "a side may have at most 8,192"),
        ((1, 101), "a side may be at most 100 times the other"),
        ((5001, 5000), "it has 5001 x 5000 pixels, and may have at most 25,000,000"),
    ],
)
def test_sizes_that_are_refused(size: tuple[int, int], reason: str) -> None:
    assert reason in refusal(encoded(Image.new("L", size)))


def test_a_size_that_only_the_header_has() -> None:
    for size in [(2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (100_000, 100_000)]:
        assert "pixels" in refusal(png(*size))
    for size in [(0, 0), (0, 5)]:
        refusal(png(*size))
    assert "cut short" in refusal(png(4000, 4000))  # the data are one empty line


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_images(kind: str) -> None:
    data = encoded(Image.effect_noise((64, 64), 90).convert("RGB"), kind)
    for length in (1, 8, 20, 60, len(data) // 2, len(data) - 30):
        refusal(data[:length])


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM", "TGA", "JPEG2000", "PCX", "DDS", "AVIF"])
def test_other_formats_are_refused(kind: str) -> None:
    assert refusal(encoded(two_colours(), kind)) == "it is not a PNG, JPEG, WebP or GIF"


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", b"%!PS-Adobe", b"<svg xmlns='x'/>", b"\0" * 1000, b"RIFF1234WEBP"]
)
def test_bytes_that_are_not_an_image(data: bytes) -> None:
    refusal(data)


def test_bombs_need_little_memory() -> None:
    """Huge pictures in few bytes (vLLM's PR 47010), and profiles and texts that unpack to gigabytes."""
    process = psutil.Process()
    zeros = zlib.compress(bytes(2**28), 9)
    bombs = [
        png(30_000, 30_000, data=bytes(30_000 * 300)),
        png(1, 1, chunk(b"iCCP", b"profile\0\0" + zeros), data=b"\0\0"),
        png(1, 1, chunk(b"zTXt", b"text\0\0" + zeros), data=b"\0\0"),
        png(1, 1, chunk(b"iTXt", b"text\0\1\0\0\0" + zeros), data=b"\0\0"),
        png(1, 1, data=bytes(2**28)),
        encoded(Image.new("RGB", (12_000, 12_000)), "WEBP", lossless=True, method=0),
    ]
    before = process.memory_info().rss
    for bomb in bombs:
        try:
            assert decode(bomb, MAX_PIXELS).size == (1, 1)
        except MediaRefused:
            continue
    assert process.memory_info().rss - before < 64 * 2**20


def test_the_size_is_read_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert "may have at most 25" in refusal(encoded(Image.new("RGB", (6, 5))), 25)
