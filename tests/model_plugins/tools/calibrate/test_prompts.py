"""The pictures and questions for calibration."""

from pathlib import Path

import pytest
from PIL import Image

from prismoe.model_plugins.tools.calibrate.prompts import QUESTIONS, SHEET_TILE, pictures, read_questions


def test_a_folder_is_read_by_name_and_thinned_evenly(tmp_path: Path) -> None:
    for number in range(6):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    shades = [open_picture().tobytes()[0] for open_picture in pictures(tmp_path, 3).openers]
    assert shades == [0, 2, 4]
    assert len(pictures(tmp_path, 100).openers) == 6


def test_without_a_folder_there_are_drawings() -> None:
    drawings = [open_picture() for open_picture in pictures(None, 1000).openers]
    assert len(drawings) == 256
    assert {drawing.size for drawing in drawings} == {(SHEET_TILE, SHEET_TILE)}
    assert len({drawing.tobytes() for drawing in drawings}) == 256


def test_unsuitable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no folder"):
        pictures(tmp_path / "none", 3)
    with pytest.raises(ValueError, match="holds no pictures"):
        pictures(tmp_path, 3)
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"broken\.png can't be read"):
        pictures(tmp_path, 3)


def test_questions(tmp_path: Path) -> None:
    assert read_questions(None) == QUESTIONS
    file = tmp_path / "questions.txt"
    file.write_text("What?\n\n  Why? \n")
    assert read_questions(file) == ["What?", "Why?"]
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no questions"):
        read_questions(file)


def test_other_pictures_have_another_digest(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert pictures(tmp_path, 2).digest == pictures(tmp_path, 2).digest != pictures(tmp_path, 1).digest
    before = pictures(tmp_path, 2).digest
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "1.png")
    assert pictures(tmp_path, 2).digest != before
