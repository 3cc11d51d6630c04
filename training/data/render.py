"""Makes pictures of scenes.

Shape legend: that of augment.py, and N all drawings.
"""

import io
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from prismoe.training.data.augment import Augment, Placed, plain
from prismoe.training.data.pictures import SIDE
from prismoe.training.data.scenes import WORD_HEIGHT, Scene

TEXTURED = 0.5
"""How often the ground has a texture."""
BATCH = 64  # scenes that are drawn together


def picture_of(scenes: Sequence[Scene], rgba_NHWC: Tensor, side: int, augment: Augment) -> Tensor:
    """A variant of each scene: RGB `[B, 3, side, side]` in 0..1."""
    rgba_DHWC, placed = _placed(scenes, rgba_NHWC)
    return augment(rgba_DHWC, side, placed, TEXTURED)


def plain_pictures(
    scenes: Sequence[Scene], rgba_NHWC: Tensor, side: int, grounds: Sequence[int | None]
) -> list[bytes]:
    """The scenes' drawings as they are, as PNG: each on white, or on the ground of that number."""
    pngs = []
    for first in range(0, len(scenes), BATCH):
        rgba_DHWC, placed = _placed(scenes[first : first + BATCH], rgba_NHWC)
        ground_BCHW = torch.cat([_ground(number, side) for number in grounds[first : first + BATCH]])
        pngs += [png(image_CHW) for image_CHW in plain(rgba_DHWC, side, placed, ground_BCHW)]
    return pngs


def _ground(number: int | None, side: int) -> Tensor:
    return torch.ones(1, 3, side, side) if number is None else Augment(number).ground(1, side, TEXTURED)


def png(image_CHW: Tensor) -> bytes:
    """A PNG file of RGB in 0..1."""
    file = io.BytesIO()
    pixels_HWC = (image_CHW * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels_HWC.numpy()).save(file, format="PNG")
    return file.getvalue()


def _placed(scenes: Sequence[Scene], rgba_NHWC: Tensor) -> tuple[Tensor, Placed]:
    """The pixels of every drawing and word of the scenes, and where each is."""
    rgba, picture, box, is_word = [], [], [], []
    for number, scene in enumerate(scenes):
        shown = [(rgba_NHWC[thing.drawing], thing.box, False) for thing in scene.things]
        if scene.word:
            shown.append((word_drawing(scene.word.text), scene.word.box, True))
        for pixels_HWC, own_box, is_text in shown:
            rgba.append(pixels_HWC)
            picture.append(number)
            box.append(own_box)
            is_word.append(is_text)
    return torch.stack(rgba), Placed(torch.tensor(picture), torch.tensor(box), torch.tensor(is_word))


@cache
def word_drawing(word: str) -> Tensor:
    """The word in capitals, dark on a pale sign that is as wide as the picture: RGBA `[SIDE, SIDE, 4]`."""
    sign = Image.new("RGBA", (SIDE, round(SIDE * WORD_HEIGHT)), (255, 255, 240, 255))
    font = ImageFont.load_default(size=sign.height)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(word.upper()))
    text = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(text).text((-left, -top), word.upper(), fill=255, font=font)
    scale = min(0.9 * sign.width / text.width, 0.75 * sign.height / text.height)
    text = text.resize((round(text.width * scale), round(text.height * scale)), Image.Resampling.BICUBIC)
    corner = ((sign.width - text.width) // 2, (sign.height - text.height) // 2)
    sign.paste((20, 20, 40, 255), (*corner, corner[0] + text.width, corner[1] + text.height), text)
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(sign, (0, (SIDE - sign.height) // 2))
    return torch.from_numpy(np.array(square))
