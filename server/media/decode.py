"""From untrusted bytes to an RGB picture, within bounds.

The format is what the bytes say. Metadata are left out before Pillow reads the file. The size is read from
the header before anything is decoded. The picture has its pixels and nothing else. Nothing that Pillow says
of a broken file is passed on (CVE-2026-22778: its errors name addresses).
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

MOST_STRETCHED = 100
"""Longer side by shorter side. A tower scales by the shorter side: at 20,000 to 1 that would be gigabytes."""

# Pillow warns of sizes, for which there is check_size, and of metadata: a request would fill the log.
warnings.filterwarnings("ignore", module=r"PIL\.")

Colour = tuple[int, int, int]
WHITE = (255, 255, 255)


def decode(data: bytes, max_pixels: int, budget: MediaBudget, background: Colour = WHITE) -> Image.Image:
    """The first frame, upright, in RGB, with `background` behind what is transparent.

    Its pixels count against `budget` until it is gone. Raises MediaRefused, or BudgetSpent.
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
    except Exception as error:  # Pillow's readers raise many kinds, of which only some are documented.
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
    """Raise MediaRefused where an image or a frame is too large, or too long for its width."""
    shorter, longer = sorted((width, height))
    if shorter < 1:
        raise MediaRefused("it has no pixels")
    if width * height > max_pixels:
        raise MediaRefused(f"it is {width} x {height} pixels, and the most is {max_pixels:,} in all")
    if longer > LONGEST_SIDE:
        raise MediaRefused(f"it is {width} x {height} pixels, and the longest side is {LONGEST_SIDE:,}")
    if longer > MOST_STRETCHED * shorter:
        raise MediaRefused(
            f"it is {width} x {height} pixels, and one side may be {MOST_STRETCHED} times the other"
        )


def _rgb(image: Image.Image, background: Colour) -> Image.Image:
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        opaque = image.convert("RGB")
        opaque.info.clear()  # Pillow copies it: vLLM would turn the picture again by its EXIF.
        return opaque
    picture = image.convert("RGBA")
    flat = Image.new("RGB", picture.size, background)
    flat.paste(picture, mask=picture.getchannel("A"))
    return flat


def _eight_bits(image: Image.Image) -> Image.Image:
    """A picture of 16-bit greys in 8 bits. Pillow's own conversion would cut off all above 255."""
    greys = np.asarray(image)
    picture = Image.fromarray((greys >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        picture.putalpha(Image.fromarray(np.where(greys == clear, 0, 255).astype(np.uint8)))
    return picture


def _upright(picture: Image.Image, info: Info) -> Image.Image:
    """The picture, turned as the metadata say."""
    orientation = _orientation(info)
    if orientation not in range(2, 9):
        return picture
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(picture)


def _orientation(info: Info) -> object:
    """EXIF's orientation; None where there is none, or the metadata can't be read."""
    holder = Image.new("1", (1, 1))
    holder.info.update(info)
    try:
        return holder.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many kinds, as it does for pixels. The picture is there.
        return None
