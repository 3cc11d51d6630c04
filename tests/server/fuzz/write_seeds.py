"""Writes the seed images: all kinds of files that the decoder supports, in all their forms.

python -m tests.server.fuzz.write_seeds
"""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tests.server.media.pictures import chunk, encoded, png, rows

SEEDS = Path(__file__).parent / "seeds"


def picture(mode: str = "RGB", colour: str = "orange") -> Image.Image:
    image = Image.new("RGBA", (24, 18), "white")
    ImageDraw.Draw(image).ellipse((4, 2, 18, 16), fill=colour)
    return image.convert(mode)


def seeds() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [picture(colour=colour) for colour in ("red", "green", "blue")]
    moving: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 40}
    grey_rows = rows([[256 * x + y for x in range(16)] for y in range(12)], 2)
    texts = chunk(b"zTXt", b"k\0\0x\x9c\x03\0\0\0\0\x01"), chunk(b"iTXt", b"k\0\0\0\0\0t")
    images = {f"png-{mode.lower()}": encoded(picture(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")}
    images |= {
        "png-16": png(16, 12, chunk(b"tRNS", b"\x01\x02"), depth=16, data=grey_rows),
        "png-icc": encoded(picture(), icc_profile=bytes(range(256)) * 2),
        "png-exif": encoded(picture(), exif=exif),
        "png-text": png(1, 1, *texts, data=b"\0\0"),
        "png-clear": encoded(picture("P"), transparency=3),
        "apng": encoded(frames[0], **moving),
        "jpeg": encoded(picture(), "JPEG", quality=70),
        "jpeg-l": encoded(picture("L"), "JPEG"),
        "jpeg-cmyk": encoded(picture("CMYK"), "JPEG"),
        "jpeg-progressive": encoded(picture(), "JPEG", progressive=True, exif=exif),
        "jpeg-icc": encoded(picture(), "JPEG", icc_profile=bytes(300), dpi=(72, 72)),
        "webp": encoded(picture(), "WEBP"),
        "webp-lossless": encoded(picture("RGBA"), "WEBP", lossless=True),
        "webp-alpha": encoded(picture("RGBA"), "WEBP", exif=exif),
        "webp-moving": encoded(frames[0], "WEBP", **moving),
        "gif": encoded(picture("P"), "GIF"),
        "gif-interlaced": encoded(picture("P"), "GIF", interlace=1, transparency=0),
        "gif-moving": encoded(frames[0], "GIF", **moving),
    }
    return images


if __name__ == "__main__":
    SEEDS.mkdir(exist_ok=True)
    for name, data in seeds().items():
        (SEEDS / f"{name}.bin").write_bytes(data)
