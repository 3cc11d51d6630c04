"""EXIF turns a picture upright exactly once, however often vLLM parses it, and is then removed."""

import functools
import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image, ImageOps
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import MultiModalDataParser

from prismoe.server.media.budget import MediaBudget
from prismoe.server.media.connector import RequestMedia
from prismoe.server.media.decode import decode as decode_within
from tests.paths import DATA
from tests.server.media.pictures import BLUE, GREEN, RED, chunk, encoded, inserted, segment
from tests.server.media.test_connector import data_url

WHITE = (255, 255, 255)
PICTURES = DATA / "pictures"
decode = functools.partial(decode_within, max_pixels=25_000_000, budget=MediaBudget(2048))

LETTERS = {"R": RED, "G": GREEN, "B": BLUE, "W": WHITE}
UPRIGHT = {
    1: "RG BW",
    2: "GR WB",
    3: "WB GR",
    4: "BW RG",
    5: "RB GW",
    6: "BR WG",
    7: "WG BR",
    8: "GW RB",
}
"""The upright picture for the rows RG BW, by EXIF orientation."""


def quarters(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """RG above BW, a picture that differs for each way to turn it."""
    width, height = size
    image = Image.new("RGB", size, WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def exif_of(orientation: int, **tags: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for tag, value in tags.items():
        exif[int(tag.removeprefix("t"), 16)] = value
    return exif.tobytes()


def letters(picture: Image.Image) -> str:
    """The quarters of a picture, row by row."""

    def nearest(x: float, y: float) -> str:
        colour: Any = picture.getpixel((int(picture.width * x), int(picture.height * y)))
        return min(
            LETTERS, key=lambda each: sum(abs(a - b) for a, b in zip(LETTERS[each], colour, strict=True))
        )

    return " ".join("".join(nearest(x, y) for x in (0.25, 0.75)) for y in (0.25, 0.75))


def by_pillow(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def parsed_again(picture: Image.Image | MediaWithBytes[Image.Image]) -> Image.Image:
    """The model's input with vLLM's image cache."""
    for _ in range(2):
        picture = MultiModalDataParser().parse_mm_data({"image": [picture]})["image"].get(0)
    assert isinstance(picture, Image.Image)
    return picture


def check_bare(picture: Image.Image) -> None:
    assert type(picture) is Image.Image and picture.mode == "RGB"
    assert picture.info == {} and dict(picture.getexif()) == {} and picture.palette is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(kind: str, orientation: int) -> None:
    data = encoded(quarters(), kind, exif=exif_of(orientation))
    picture = decode(data)
    check_bare(picture)
    assert letters(picture) == UPRIGHT[orientation]
    assert picture.size == ((64, 96) if orientation >= 5 else (96, 64))
    assert picture.tobytes() == by_pillow(data).tobytes()
    fetched = RequestMedia().fetch_image(data_url(data))
    for seen in (parsed_again(picture), parsed_again(fetched)):
        assert seen.size == picture.size and seen.tobytes() == picture.tobytes()


@pytest.mark.parametrize("name", ["exif8.png", "exif8.jpg"])
def test_a_photo_is_turned_once(name: str) -> None:
    data = (PICTURES / name).read_bytes()
    picture = decode(data)
    check_bare(picture)
    upright = by_pillow((PICTURES / "upright.png").read_bytes() if name == "exif8.png" else data)
    assert picture.tobytes() == upright.tobytes() == parsed_again(picture).tobytes()


XMP = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
XMP_KEY = b"XML:com.adobe.xmp\0"
RAW_EXIF = f"\nexif\n{len(exif_of(6)):8}\n{exif_of(6).hex()}\n".encode()
TIFF = exif_of(6).removeprefix(b"Exif\0\0")


@pytest.mark.parametrize(
    "data",
    [
        inserted(encoded(quarters()), chunk(b"eXIf", TIFF)),
        inserted(encoded(quarters()), chunk(b"eXIf", b"Exif\0\0" + TIFF)),
        inserted(encoded(quarters()), chunk(b"eXIf", TIFF), before=b"IEND"),
        inserted(encoded(quarters()), chunk(b"iTXt", XMP_KEY + b"\0\0\0\0" + XMP)),
        inserted(encoded(quarters()), chunk(b"iTXt", XMP_KEY + b"\1\0\0\0" + zlib.compress(XMP))),
        inserted(encoded(quarters()), chunk(b"tEXt", b"Raw profile type exif\0" + RAW_EXIF)),
        inserted(encoded(quarters()), chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_EXIF))),
        inserted(encoded(quarters(), "JPEG"), segment(0xE1, exif_of(6))),
        inserted(encoded(quarters(), "JPEG"), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP)),
        encoded(quarters(), "WEBP", xmp=XMP),
        encoded(quarters(), "WEBP", exif=TIFF),
        encoded(quarters(), "WEBP", exif=exif_of(6), icc_profile=bytes(100)),
    ],
)
def test_the_orientation_is_found_in_all_places(data: bytes) -> None:
    picture = decode(data)
    assert letters(picture) == UPRIGHT[6] and picture.tobytes() == by_pillow(data).tobytes()
    check_bare(picture)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        *[(mode, "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")],
        ("P", "PNG", {"transparency": 255}),
        ("L", "PNG", {"transparency": 1}),
        ("RGB", "PNG", {"transparency": (1, 2, 3)}),
        *[(mode, "JPEG", {}) for mode in ("L", "RGB", "CMYK")],
        ("RGB", "JPEG", {"progressive": True, "dpi": (72, 72), "comment": "x", "icc_profile": bytes(200)}),
        *[(mode, "WEBP", {"lossless": True}) for mode in ("RGB", "RGBA")],
    ],
)
def test_every_mode_is_turned_and_stripped(mode: str, kind: str, options: dict[str, Any]) -> None:
    grey = Image.linear_gradient("L").resize((96, 64))
    image = grey.convert("I").convert(mode) if mode == "I;16" else grey.convert(mode)
    flat, turned = (decode(encoded(image, kind, exif=exif_of(each), **options)) for each in (1, 6))
    check_bare(turned)
    assert turned.size == (64, 96) and turned.tobytes() == flat.rotate(-90, expand=True).tobytes()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_an_animation_is_stripped(kind: str) -> None:
    frames = [quarters(), Image.new("RGB", (96, 64), RED)]
    options = {} if kind == "GIF" else {"exif": exif_of(8)}
    picture = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    check_bare(picture)
    assert letters(picture) == UPRIGHT[1 if kind == "GIF" else 8]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(64),
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 60,
        b"Exif\0\0II+\0\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(32),
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x1a\1\5\0\0\0\0\0\0\0\0\0",  # a resolution without numbers
        exif_of(0),
        exif_of(9),
        exif_of(65535),
    ],
)
def test_exif_without_an_orientation_turns_nothing(kind: str, exif: bytes) -> None:
    picture = decode(encoded(quarters(), kind, exif=exif))
    check_bare(picture)
    assert letters(picture) == UPRIGHT[1]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "entry",
    [
        struct.pack(">HHI4s", 0x0103, 2, 4, b"abc\0"),
        struct.pack(">HHII", 0x0128, 5, 1, 8),
        struct.pack(">HHIi", 0x8769, 9, 1, -1),
    ],
)
def test_exif_with_other_broken_parts_still_turns(kind: str, entry: bytes) -> None:
    """Pillow's exif_transpose rewrites the other parts, and fails."""
    orientation = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\2" + orientation + entry + bytes(4)
    data = encoded(quarters(), kind, exif=exif)
    with pytest.raises((ValueError, struct.error)):
        by_pillow(data)
    assert letters(decode(data)) == UPRIGHT[6]


def test_pictures_with_the_same_exif_id_have_different_hashes() -> None:
    """vLLM uses an image's EXIF ImageID as its identity if it is a UUID."""
    named = [exif_of(1, tA420="0123456789abcdef0123456789abcdef")] * 2
    files = [
        encoded(image, exif=exif) for image, exif in zip((quarters(), quarters((64, 96))), named, strict=True)
    ]

    def digest(data: bytes) -> str:
        return MultiModalHasher.hash_kwargs("blake3", image=RequestMedia().fetch_image(data_url(data)))

    assert digest(files[0]) == digest(files[0]) != digest(files[1])
