"""Which pictures and questions a checkpoint is calibrated on."""

from pathlib import Path

import pytest
from PIL import Image

from prismoe.model_plugins.plugin import register
from prismoe.model_plugins.tools.calibrate.prompts import (
    QUESTIONS,
    SHEET_TILE,
    calibration_prompts,
    pictures,
    read_questions,
)
from prismoe.model_plugins.tools.check.reference import IMAGE
from tests.model_plugins.engine import PHI


def test_a_folder_is_read_by_name_and_thinned_evenly(tmp_path: Path) -> None:
    for number in range(6):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    shades = [image.tobytes()[0] for image in pictures(tmp_path, 3)]
    assert shades == [0, 2, 4]
    assert len(pictures(tmp_path, 100)) == 6


def test_without_a_folder_there_are_drawings() -> None:
    drawings = pictures(None, 1000)
    assert len(drawings) == 256
    assert {drawing.size for drawing in drawings} == {(SHEET_TILE, SHEET_TILE)}
    assert len({drawing.tobytes() for drawing in drawings}) == 256


def test_folders_that_will_not_do(tmp_path: Path) -> None:
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


def test_pictures_take_the_questions_in_turn() -> None:
    register()
    images = [Image.new("RGB", (50, 30), "red"), Image.new("RGB", (8, 8)), Image.new("RGB", (9, 9))]
    prompts = calibration_prompts(str(PHI), images, ["What is this?", "Why?"])
    assert [prompt.token_ids.count(IMAGE) for prompt in prompts] == [1, 1, 1]
    assert prompts[0].token_ids == prompts[2].token_ids != prompts[1].token_ids
    assert len({prompt.name for prompt in prompts}) == 3
    assert {prompt.pixel_values.shape for prompt in prompts} == {(1, 3, 56, 56)}
