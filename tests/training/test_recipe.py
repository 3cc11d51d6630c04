"""Pictures, splits, the image tower, and the whole recipe, for made-up pictures."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from prismoe.training import teacher
from prismoe.training.comparison import train as comparison
from prismoe.training.comparison.contenders import CONTENDERS, Trained
from prismoe.training.data.augment import Augment, on_white
from prismoe.training.data.concepts import CANDIDATES, CONCEPT_BY_EMOJI, CONCEPTS
from prismoe.training.data.pictures import SIDE, STYLE_BY_NAME, STYLES, UNSEEN_FAMILY, Drawing, Pictures
from prismoe.training.data.scenes import SMALL, WHOLE
from prismoe.training.data.splits import held_out_families, more_families, split
from prismoe.training.model.checkpoint import load
from prismoe.training.model.tower import ImageTower, TowerConfig
from prismoe.training.prismoji import Recipe, train
from prismoe.training.scores.card import card
from prismoe.training.scores.measured import CheckpointScores
from prismoe.training.stages import PictureSource, StageSettings
from prismoe.training.tower_training import (
    EMPTY,
    IN_SCENES,
    Pool,
    TowerClassifier,
    TowerSettings,
    eye_scenes,
    losses,
    rate_share,
)


class MadeUpPictures(Pictures):
    """Coloured noise for each emoji in each style."""

    def __init__(self, folder: Path, emoji: list[str]) -> None:
        super().__init__(folder)
        self.short_names = emoji

    def load(self) -> tuple[list[Drawing], NDArray[np.uint8]]:
        drawings = [Drawing(e, style.name, "made up") for style in STYLES for e in self.short_names]
        noise = np.random.default_rng(0).integers(0, 255, (len(drawings), SIDE, SIDE, 4), dtype=np.uint8)
        return drawings, noise

    def render(self, drawing: Drawing, side: int) -> NDArray[np.uint8]:
        return np.zeros((side, side, 4), np.uint8)


def every_drawing() -> list[Drawing]:
    emoji = [short_name for candidate in CANDIDATES for short_name in candidate.emoji]
    return [Drawing(e, style.name, "") for style in STYLES for e in [*emoji, "another"]]


def test_held_out_drawings_are_not_trained_on() -> None:
    drawings = every_drawing()
    splits = split(drawings)
    trained = {(drawings[i].emoji, drawings[i].family) for i in splits.train}
    sets = vars(splits)
    kept = {(drawings[i].emoji, drawings[i].family) for name in sets if name != "train" for i in sets[name]}
    assert not trained & kept
    indices = [index for own in sets.values() for index in own]
    assert len(indices) == len(set(indices)) and all(sets.values())
    assert all(family != UNSEEN_FAMILY for _, family in trained)
    assert {drawings[i].family for i in splits.unseen_style} == {UNSEEN_FAMILY}
    assert ("another", "noto") in trained


def test_a_quarter_of_the_candidates_have_a_family_held_out() -> None:
    families = held_out_families()
    assert len(families) / len(CANDIDATES) == pytest.approx(0.25, abs=0.01)
    more, validation = more_families()
    assert not families.keys() & more.keys() and not validation.keys() & (families | more).keys()
    assert (len(more), len(validation)) == (55, 40)
    assert set(Counter(families.values())) <= {style.family for style in STYLES} - {UNSEEN_FAMILY}


def test_plain_view_is_on_white() -> None:
    drawing = torch.zeros(1, SIDE, SIDE, 4, dtype=torch.uint8)
    assert on_white(drawing, 32).min() == 1
    drawing[..., 3] = 255
    view = on_white(drawing, 32)
    assert view[0, :, 16, 16].max() == 0 and view[0, :, 0, 0].min() == 1


def test_augmentation_is_repeatable_and_in_range() -> None:
    drawing = torch.randint(0, 255, (5, SIDE, SIDE, 4), dtype=torch.uint8)
    first, second = (Augment(3)(drawing, 64) for _ in range(2))
    assert first.shape == (5, 3, 64, 64) and torch.equal(first, second)
    assert first.min() >= 0 and first.max() <= 1
    assert not torch.equal(first, Augment(4)(drawing, 64))


def test_the_teacher_returns_a_fine_and_a_coarse_grid() -> None:
    fine, coarse = teacher.Teacher()(torch.rand(2, 3, teacher.SIDE, teacher.SIDE))
    assert fine.shape == (2, 64, teacher.FINE_CHANNELS) and coarse.shape == (2, 16, teacher.COARSE_CHANNELS)


def test_the_eye_sees_every_drawing_once_a_round() -> None:
    scenes = eye_scenes(random.Random(0), range(1000))
    assert sorted(thing.drawing for scene in scenes for thing in scene.things) == list(range(1000))
    sizes = Counter(len(scene.things) for scene in scenes)
    assert sizes[1] / len(scenes) == pytest.approx(1 - IN_SCENES, abs=0.03)
    whole = sum(scene.things[0].box == WHOLE for scene in scenes)
    assert whole / len(scenes) == pytest.approx(1 - IN_SCENES - SMALL, abs=0.04)


def test_the_eye_names_each_drawing_by_the_tokens_that_it_covers() -> None:
    settings = TowerSettings(batch=8)
    rgba_NHWC = torch.randint(0, 255, (30, SIDE, SIDE, 4), dtype=torch.uint8)
    pool = Pool(rgba_NHWC, torch.arange(30), settings, TowerConfig())
    pool.refill()
    [shown] = pool.rounds
    is_named_BK = shown.label_BK != EMPTY
    assert sorted(shown.label_BK[is_named_BK].tolist()) == list(range(30))
    covered_BK = shown.covers_BKN.sum(dim=2)
    assert (covered_BK[is_named_BK] > 0).all() and (covered_BK[~is_named_BK] == 0).all()
    assert (shown.covers_BKN.sum(dim=1) <= 1).all()  # no token is of two drawings
    assert {64} < set(covered_BK[is_named_BK].tolist())
    losses(TowerClassifier(ImageTower(TowerConfig(), -1), 30), pool.sample(), settings)["total"].backward()


def test_pictures_are_of_the_given_drawings_alone() -> None:
    drawings = every_drawing()
    indices = split(drawings).train
    source = PictureSource(drawings, torch.empty(0), indices, 64, seed=0)
    scenes = source.scenes(3000)
    shown = [thing for scene in scenes for thing in scene.things]
    known = {index for index in indices if drawings[index].emoji in CONCEPT_BY_EMOJI}
    assert {thing.drawing for thing in shown} <= known
    assert all(CONCEPT_BY_EMOJI[drawings[thing.drawing].emoji] == thing.concept for thing in shown)
    assert {thing.concept for thing in shown} == set(CONCEPTS)


def test_learning_rate_rises_holds_and_falls() -> None:
    assert rate_share(0.0) < 0.01 and rate_share(0.3) == pytest.approx(1, abs=0.01) and rate_share(1.0) < 0.01


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError):
        TowerSettings.model_validate({"round": 3})


@pytest.mark.slow
def test_the_whole_recipe(tmp_path: Path) -> None:
    emoji = [concept.emoji[0] for concept in CONCEPTS if concept.name in held_out_families()][:2]
    validation = [concept.emoji[0] for concept in CONCEPTS if concept.name in more_families()[1]][:2]
    pictures = MadeUpPictures(tmp_path, [*emoji, *validation, "dog", "another"])
    output = tmp_path / "checkpoint"
    measured = train(Recipe.quick(), pictures, tmp_path / "cache", output)
    assert [record.stage for record in measured.stages] == ["eye", "read", "align", "teach", "upcycle"]
    for scores in (measured.scores, measured.old_scores):
        assert {score.split for score in scores} == {"held-out drawings", "unseen style"}
    assert {score.look for score in measured.scores} == {"whole", "small", "scene"}
    assert {score.split for score in measured.validation} == {"validation"}
    assert all(0 < layer.tail_share < 1 for layer in measured.routing)
    assert CheckpointScores.read(output) == measured and (output / "README.md").read_text() == card(measured)
    assert load(output).config.moe_layers == (0, 2)
    config = json.loads((output / "config.json").read_text())
    assert config["prismoe_routing"] == {"policy": "ltdr", "tail_experts": 4, "norm_topk_prob": True}
    shipped = json.loads((output / "pictures" / "pictures.json").read_text())
    names = {CONCEPT_BY_EMOJI[short_name].name for short_name in emoji}
    assert {entry["name"] for entry in shipped} <= names
    assert all(entry["licence"] in ("Apache-2.0", "MIT") for entry in shipped)
    again = train(
        Recipe.quick(), pictures, tmp_path / "cache", output
    )  # continues, and all stages are already done
    assert again == measured
    for name in ("gmm", "cluster"):
        a_contender_starts_from_the_dense_model(name, pictures, tmp_path / "cache", tmp_path / name)


def a_contender_starts_from_the_dense_model(name: str, pictures: Pictures, cache: Path, output: Path) -> None:
    contender = CONTENDERS[name]
    assert isinstance(contender, Trained)
    settings = StageSettings(steps=2, batch=8, language_rate=1e-3)
    trained = comparison.train(contender, settings, pictures, cache, output)
    assert trained.step_seconds > 0
    assert json.loads((output / "config.json").read_text())["prismoe_routing"] == contender.routing
    model, taught = load(output), torch.load(cache / "teach.pt")["weights"]
    assert set(model.moe_layers[0].router) == set(model.config.policy(0).parameters(192, 4))
    assert model.routes_requests == (name == "cluster")
    frozen = "model.image_tower.image_tower.vision_model.embeddings.patch_embedding.weight"
    assert torch.equal(model.state_dict()[frozen], taught[frozen].bfloat16().float())


def test_styles_are_pinned() -> None:
    assert all(style.version.count(".") == 2 for style in STYLES)
    assert STYLE_BY_NAME["fluent-3d"].family == STYLE_BY_NAME["fluent-flat"].family
