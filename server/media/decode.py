"""From untrusted bytes to an RGB picture, within bounds.

The format is what the bytes say. The size is read from the header before anything is decoded. Nothing that
Pillow says of a broken file is passed on (CVE-2026-22778: its errors name addresses).
"""

import warnings
from io import BytesIO
from typing import cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from prismoe.server.media.budget import BYTES_PER_PIXEL, BudgetSpent, ImageBudget
from prismoe.server.media.refusal import ImageRefused

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")

LONGEST_SIDE = 8192
"""In pixels. MoE-LLaVA pads an image to the square of its longer side: 200 MB at this size."""

MOST_STRETCHED = 100
"""Longer side by shorter side. A tower scales by the shorter side: at 20,000 to 1 that would be gigabytes."""

ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation: what turns the image upright."""

# _check_size has a limit of its own, and Pillow's is an error at twice what it warns of.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

Colour = tuple[int, int, int]
WHITE = (255, 255, 255)


def decode(data: bytes, max_pixels: int, budget: ImageBudget, background: Colour = WHITE) -> Image.Image:
    """The first frame, upright, in RGB, with `background` behind what is transparent.

    Its pixels count against `budget` until it is gone. Raises ImageRefused, or BudgetSpent.
    """
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_size(image.width, image.height, max_pixels)
            return _within(budget, image, background)
    except (ImageRefused, BudgetSpent):
        raise
    except UnidentifiedImageError as error:
        raise ImageRefused("it is not a PNG, JPEG, WebP or GIF") from error
    except Image.DecompressionBombError as error:
        raise ImageRefused(f"it has more than {max_pixels:,} pixels") from error
    except MemoryError as error:
        raise ImageRefused("there is not enough memory for it now") from error
    except Exception as error:  # Pillow's readers raise many kinds, of which only some are documented.
        raise ImageRefused("it is damaged or cut short") from error


def _within(budget: ImageBudget, image: Image.Image, background: Colour) -> Image.Image:
    count = image.width * image.height * BYTES_PER_PIXEL
    budget.take(count)
    try:
        image.load()
        picture = _upright(_rgb(image, background), image)
    except BaseException:
        budget.give_back(count)
        raise
    budget.give_back_after(picture, count)
    return picture


def _check_size(width: int, height: int, max_pixels: int) -> None:
    shorter, longer = sorted((width, height))
    if shorter < 1:
        raise ImageRefused("it has no pixels")
    if width * height > max_pixels:
        raise ImageRefused(f"it is {width} x {height} pixels, and the most is {max_pixels:,} in all")
    if longer > LONGEST_SIDE:
        raise ImageRefused(f"it is {width} x {height} pixels, and the longest side is {LONGEST_SIDE:,}")
    if longer > MOST_STRETCHED * shorter:
        raise ImageRefused(
            f"it is {width} x {height} pixels, and one side may be {MOST_STRETCHED} times the other"
        )


def _rgb(image: Image.Image, background: Colour) -> Image.Image:
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
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


def _upright(picture: Image.Image, image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(cast(int, image.getexif().get(ORIENTATION_TAG)))
    except Exception:  # EXIF that can't be read says nothing; the picture is there.
        return picture
    return picture if turn is None else picture.transpose(turn)
