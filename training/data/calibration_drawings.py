"""Drawings that `prismoe calibrate` falls back on. The recipe writes them beside its checkpoint.

They are from the training set, so calibration sees no drawing that a score is measured on. The licences of
their teams allow the package to contain them.
"""

import random
from pathlib import Path

import torch
from PIL import Image

from prismoe.training.data.augment import on_white
from prismoe.training.data.concepts import CONCEPT_BY_EMOJI
from prismoe.training.data.demo import LICENCES, NOTICE
from prismoe.training.data.pictures import STYLE_BY_NAME, Pictures
from prismoe.training.data.splits import split

COLUMNS = ROWS = 16
TILE = 64  # pixels
FOLDER = "calibration"


def choose(pictures: Pictures, seed: int = 0) -> list[int]:
    """Indices of training drawings of things that the model knows, chosen at random."""
    drawings, _ = pictures.load()
    usable = [
        index
        for index in split(drawings).train
        if drawings[index].emoji in CONCEPT_BY_EMOJI
        and STYLE_BY_NAME[drawings[index].style].licence in LICENCES
    ]
    return random.Random(seed).sample(usable, COLUMNS * ROWS)


def write_sheet(pictures: Pictures, checkpoint: Path) -> None:
    """Write the drawings as one picture, on white, and their credits."""
    drawings, pixels = pictures.load()
    chosen = choose(pictures)
    rgb_BCHW = (on_white(torch.from_numpy(pixels[chosen]), TILE) * 255).round().byte()
    sheet = Image.new("RGB", (COLUMNS * TILE, ROWS * TILE))
    for number, rgb_CHW in enumerate(rgb_BCHW):
        row, column = divmod(number, COLUMNS)
        sheet.paste(Image.fromarray(rgb_CHW.permute(1, 2, 0).numpy()), (column * TILE, row * TILE))
    folder = checkpoint / FOLDER
    folder.mkdir(exist_ok=True)
    sheet.save(folder / "drawings.png", optimize=True)
    styles = sorted({STYLE_BY_NAME[drawings[index].style] for index in chosen}, key=lambda style: style.name)
    credits = "\n".join(
        f"- {style.credit}: {style.licence}, from npm {style.package} {style.version}" for style in styles
    )
    _, _, licences = NOTICE.partition("\n\n")
    notice = f"The drawings in drawings.png were scaled and put on white. They are by:\n\n{credits}\n\n"
    (folder / "NOTICE.txt").write_text(notice + licences.replace("(Noto Emoji)", "(Noto Emoji, FxEmojis)"))
