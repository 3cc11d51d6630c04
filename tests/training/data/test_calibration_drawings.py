"""No score is measured on calibration's drawings."""

from pathlib import Path

import numpy as np
from PIL import Image

from prismoe.model_plugins.tools.calibrate.prompts import SHEET, SHEET_TILE
from prismoe.training.data.calibration_drawings import COLUMNS, ROWS, TILE, choose, write_sheet
from prismoe.training.data.cases import build_exam
from prismoe.training.data.concepts import CANDIDATES
from prismoe.training.data.demo import LICENCES
from prismoe.training.data.pictures import STYLE_BY_NAME
from tests.training.test_recipe import MadeUpPictures


def made_up(folder: Path) -> MadeUpPictures:
    return MadeUpPictures(folder, [short_name for candidate in CANDIDATES for short_name in candidate.emoji])


def test_no_drawing_of_the_exam_is_chosen(tmp_path: Path) -> None:
    pictures = made_up(tmp_path)
    drawings, _ = pictures.load()
    chosen = choose(pictures)
    assert len(set(chosen)) == COLUMNS * ROWS
    assert not set(chosen) & build_exam(pictures).png.keys()
    assert {STYLE_BY_NAME[drawings[index].style].licence for index in chosen} <= set(LICENCES)


def test_the_sheet_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_sheet(made_up(tmp_path), tmp_path)
    sheet = Image.open(tmp_path / SHEET.parent.name / SHEET.name)
    assert sheet.size == (COLUMNS * TILE, ROWS * TILE) == Image.open(SHEET).size
    assert TILE == SHEET_TILE
    tiles = np.asarray(sheet).reshape(ROWS, TILE, COLUMNS, TILE, 3).swapaxes(1, 2)
    assert len(np.unique(tiles.reshape(ROWS * COLUMNS, -1), axis=0)) == ROWS * COLUMNS
    notice = (tmp_path / SHEET.parent.name / "NOTICE.txt").read_text()
    assert "Noto Emoji, Google: Apache-2.0" in notice and "Twemoji" not in notice
