"""Decodes untrusted bytes to an RGB picture, within limits.

The bytes decide the format. Metadata are removed before Pillow reads the file. The size is read from the
header and checked before pixels are decoded. The picture has pixels only. Pillow's own error messages are not
passed on, because they contain memory addresses (CVE-2026-22778).
"""

import warnings
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from prismoe.server.media.budget import BYTES_PER_PIXEL, BudgetSpent, MediaBudget
from prismoe.server.media.metadata import Info, bare
from prismoe.server.media.refusal import DAMAGED, MediaRefused

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")

LONGEST_SIDE = 8192
"""In pixels. MoE-LLaVA pads an image to the square of its longer side: 200 MB at this size."""

MAX_ASPECT_RATIO = 100
"""The longer side by the shorter. A vision tower scales the shorter side: 20,000 to 1 takes gigabytes."""

# Pillow warns of large sizes, which check_size refuses, and of metadata. Requests could fill the log.
warnings.filterwarnings("ignore", module=r"PIL\.")

Colour = tuple[int, int, int]
WHITE = (255, 255, 255)


def decode(data: bytes, max_pixels: int, budget: MediaBudget, background: Colour = WHITE) -> Image.Image:
    """Return the image's first frame, upright and in RGB, with `background` behind transparent pixels.

    Its pixels count against `budget` until it is collected. Raises MediaRefused, or BudgetSpent.
    """
    try:
        file, info = bare(data)
        with Image.open(BytesIO(file), formats=FORMATS) as image:
            check_size(image.width, image.height, max_pixels)
            return _within(budget, image, info, background)
    except (MediaRefused, BudgetSpent):
        raise
    except Image.DecompressionBombError as error:
        raise MediaRefused(f"it has more than {max_pixels:,} pixels") from error
    except MemoryError as error:
        raise MediaRefused("there is not enough memory for it now") from error
    except Exception as error:  # Pillow's readers raise many kinds of errors, and document only some.
        raise MediaRefused(DAMAGED) from error


def _within(budget: MediaBudget, image: Image.Image, info: Info, background: Colour) -> Image.Image:
    count = image.width * image.height * BYTES_PER_PIXEL
    budget.take(count)
    try:
        image.load()
        picture = _upright(_rgb(image, background), info)
    except BaseException:
        budget.give_back(count)
        raise
    budget.give_back_after(picture, count)
    return picture


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise MediaRefused if an image or a frame is too large, or one side is too long for the other."""
    shorter, longer = sorted((width, height))
    if shorter < 1:
        raise MediaRefused("it has no pixels")
    if width * height > max_pixels:
        raise MediaRefused(f"it has {width} x {height} pixels, and may have at most {max_pixels:,}")
    if longer > LONGEST_SIDE:
        raise MediaRefused(f"it has {width} x {height} pixels, and a side may have at most {LONGEST_SIDE:,}")
    if longer > MAX_ASPECT_RATIO * shorter:
        raise MediaRefused(
            f"it has {width} x {height} pixels, and a side may be at most {MAX_ASPECT_RATIO} times the other"
        )


def _rgb(image: Image.Image, background: Colour) -> Image.Image:
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        opaque = image.convert("RGB")
        opaque.info.clear()  # Pillow copies the metadata, and vLLM would turn the picture again by its EXIF.
        return opaque
    picture = image.convert("RGBA")
    flat = Image.new("RGB", picture.size, background)
    flat.paste(picture, mask=picture.getchannel("A"))
    return flat


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a picture of 16-bit greys in 8 bits. Pillow's own conversion clips all values above 255."""
    greys = np.asarray(image)
    picture = Image.fromarray((greys >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        picture.putalpha(Image.fromarray(np.where(greys == clear, 0, 255).astype(np.uint8)))
    return picture


def _upright(picture: Image.Image, info: Info) -> Image.Image:
    """Return the picture, turned by the orientation in the metadata."""
    orientation = _orientation(info)
    if orientation not in range(2, 9):
        return picture
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(picture)


def _orientation(info: Info) -> object:
    """Return the EXIF orientation; None if there is none, or the metadata can't be read."""
    holder = Image.new("1", (1, 1))
    holder.info.update(info)
    try:
        return holder.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many kinds of errors. The picture can be used without its orientation.
        return None
