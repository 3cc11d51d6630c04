"""The places of an image's tokens on the picture, for each kind of tower."""

from pathlib import Path
from typing import Any

import pytest

from prismoe.model_plugins.models.moe_llava.families.phi import MoELLaVAPhiConfig
from prismoe.model_plugins.models.moe_llava.tower import patch_grid
from prismoe.model_plugins.models.patch_grid import PatchGrid
from tests.model_plugins.tiny_checkpoints import make_checkpoint


def grid_of(folder: Path, tower: str, **settings: Any) -> PatchGrid:
    checkpoint = make_checkpoint(folder, "phi", tower, **settings)
    return patch_grid(MoELLaVAPhiConfig.from_pretrained(checkpoint), str(checkpoint))


@pytest.mark.parametrize(
    ("tower", "feature", "first", "last"),
    [
        ("clip", "patch", (0, 0), (3, 3)),
        ("clip", "cls_patch", None, (3, 3)),
        ("siglip", "patch", (0, 1), (3, 3)),
        ("siglip", "cls_patch", (0, 0), (3, 3)),
    ],
)
def test_the_first_and_last_patch(
    tmp_path: Path, tower: str, feature: str, first: tuple[int, int] | None, last: tuple[int, int]
) -> None:
    grid = grid_of(tmp_path, tower, mm_vision_select_feature=feature)
    assert (grid.place(0), grid.place(grid.tokens - 1)) == (first, last)


@pytest.mark.parametrize(
    ("tower", "aspect", "fit"),
    [("clip", "pad", "pad"), ("clip", None, "crop"), ("siglip", None, "stretch"), ("siglip", "pad", "pad")],
)
def test_a_picture_becomes_a_square(tmp_path: Path, tower: str, aspect: str | None, fit: str) -> None:
    assert grid_of(tmp_path, tower, image_aspect_ratio=aspect).fit == fit
