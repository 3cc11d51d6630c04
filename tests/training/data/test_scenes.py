"""Scenes, what is asked of them, and their pictures."""

import io
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from prismoe.training.data.augment import Augment, on_white
from prismoe.training.data.concepts import CONCEPT_BY_EMOJI, CONCEPTS, Concept
from prismoe.training.data.pictures import SIDE
from prismoe.training.data.questions import (
    DRAWING_TOPICS,
    NUMBERS,
    SCENE_TOPICS,
    TEMPLATES,
    Topic,
)
from prismoe.training.data.render import picture_of, plain_pictures, word_drawing
from prismoe.training.data.scene_questions import ask_of, ask_plainly, askable
from prismoe.training.data.scenes import (
    MOST_THINGS,
    PLACES,
    WORD_HEIGHT,
    WORDS,
    Box,
    Known,
    Scene,
    Thing,
    Word,
    any_scene,
    shown_at,
    single,
    small,
    spelt,
)

DOG, CAT, CAR = (CONCEPT_BY_EMOJI[emoji] for emoji in ("dog", "cat", "car"))
SCENE = Scene(
    (
        Thing(DOG, 0, Box(-0.5, -0.5, 0.5), "top left"),
        Thing(DOG, 1, Box(0.5, -0.5, 0.5), "top right"),
        Thing(CAR, 2, Box(0.5, 0.5, 0.4), "bottom right"),
    )
)
BLACK = torch.zeros(3, SIDE, SIDE, 4, dtype=torch.uint8)
BLACK[..., 3] = 255


def pixels(png: bytes) -> Tensor:
    """RGB in 0..1."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)))).permute(2, 0, 1) / 255


def scenes(count: int) -> list[Scene]:
    draw = random.Random(0)

    def again(concept: Concept) -> Known:
        return Known(concept, draw.randrange(3))

    return [any_scene(draw, lambda: again(draw.choice(CONCEPTS)), again) for _ in range(count)]


def test_drawings_and_the_word_are_apart_and_in_the_picture() -> None:
    for scene in scenes(500):
        boxes = [(thing.box.x, thing.box.y, thing.box.size, thing.box.size) for thing in scene.things]
        if scene.word:
            boxes.append((scene.word.box.x, scene.word.box.y, scene.word.box.size, 1 / 3))
        for number, (x, y, width, height) in enumerate(boxes):
            assert max(abs(x) + width, abs(y) + height) <= 1.011
            for other_x, other_y, other_width, other_height in boxes[:number]:
                gaps = abs(x - other_x) - width - other_width, abs(y - other_y) - height - other_height
                assert max(gaps) > -0.021  # the corners are rounded to hundredths


def test_every_kind_of_picture_comes_up() -> None:
    found = scenes(1000)
    laid = [scene for scene in found if scene.things[0].place]
    assert 300 < len(laid) < 500
    assert set(Counter(len(scene.things) for scene in laid)) == set(range(1, MOST_THINGS + 1))
    assert {thing.place for scene in laid for thing in scene.things} == set(PLACES[2] + PLACES[3])
    assert {scene.word.text for scene in laid if scene.word} == set(WORDS)
    assert any(len(set(scene.concepts)) < len(scene.concepts) for scene in laid)


def test_words_are_no_names() -> None:
    names = {name for concept in CONCEPTS for name in (concept.name, concept.category, concept.kind)}
    assert not set(WORDS) & (names | set(NUMBERS) | set(PLACES[3]))


@pytest.mark.parametrize(
    ("topic", "answers"),
    [
        ("count", {"How many things are there?": "three"}),
        (
            "count of a thing",
            {
                "How often does the picture show a dog?": "two",
                "How often does the picture show a car?": "one",
            },
        ),
        ("thing at a place", {"What is at the top left?": "dog", "What is at the bottom right?": "car"}),
        (
            "category at a place",
            {"Which category does the thing at the bottom right belong to?": "vehicle"},
        ),
        ("place of a thing", {"Where is the car?": "bottom right"}),
        ("presence", {"Do you see a dog?": "yes", "Do you see a car?": "yes"}),
        ("word", {"What word is written?": "none"}),
    ],
)
def test_an_answer_is_what_the_scene_shows(topic: Topic, answers: dict[str, str]) -> None:
    draw = random.Random(0)
    asked = [ask_plainly(draw, topic, SCENE, is_shown=True) for _ in range(50)]
    found = {question.text: question.answer for question in asked}
    assert {text: found[text] for text in answers} == answers
    assert "Where is the dog?" not in found


def test_what_is_not_shown_is_not_there() -> None:
    draw = random.Random(0)
    for topic, answer in (("presence", "no"), ("count of a thing", "zero")):
        asked = {ask_plainly(draw, topic, SCENE, is_shown=False) for _ in range(100)}  # type: ignore[arg-type]
        assert {question.answer for question in asked} == {answer} and len(asked) > 20
        assert not any(question.text.endswith((" a dog?", " a car?")) for question in asked)
        assert any("truck" in question.text or "bus" in question.text for question in asked)


def test_what_can_be_asked() -> None:
    one = single(Known(DOG, 0))
    assert askable(one) == [*DRAWING_TOPICS, "count", "count of a thing", "presence", "word"]
    assert askable(SCENE) == list(SCENE_TOPICS)
    twins = Scene(SCENE.things[:2], Word("stop", Box(0, 0.5, 0.95)))
    assert "place of a thing" not in askable(twins)
    assert ask_of(random.Random(0), "word", twins).answer == "stop"


def test_every_wording_has_its_words_filled_in() -> None:
    draw = random.Random(0)
    for scene in scenes(100):
        for topic in askable(scene):
            question = ask_of(draw, topic, scene)
            assert "{" not in question.text and "None" not in question.text and question.answer


def test_plural_things_are_many() -> None:
    cherries = next(concept for concept in CONCEPTS if concept.name == "cherries")
    scene = Scene((Thing(cherries, 0, Box(0, 0, 0.3), "centre"),))
    assert ask_plainly(random.Random(0), "place of a thing", scene, True).text == "Where are the cherries?"


def test_a_scene_in_words_has_its_names_in_place() -> None:
    word = Scene(SCENE.things[:2], Word("stop", Box(0, 0.5, 0.95)))
    rows = [spelt(word, 4)[row * 4 : row * 4 + 4] for row in range(4)]
    assert rows[:2] == [["dog"] * 4] * 2
    assert shown_at(word, 0.9, 0.5) == "stop" and shown_at(word, 0, 0.9) is None
    assert spelt(SCENE, 4)[10:12] == ["car", "car"] and spelt(SCENE, 4)[8] is None


def test_a_drawing_is_in_its_box_and_nowhere_else() -> None:
    [png] = plain_pictures([SCENE], BLACK, 128, [None])
    image_CHW = pixels(png)
    assert image_CHW[:, 4:60, 4:60].max() == 0 and image_CHW[:, 68:, :60].min() == 1


def test_exam_grounds_are_the_same_each_time() -> None:
    first, again = (plain_pictures([SCENE, SCENE], BLACK, 64, [3, 4]) for _ in range(2))
    assert first == again and first[0] != first[1]


def test_a_smaller_drawing_takes_its_share_of_the_picture() -> None:
    scene = small(random.Random(2), Known(DOG, 0))
    assert 0.35 <= scene.things[0].box.size <= 0.8
    [png] = plain_pictures([scene], BLACK, 128, [None])
    share = (pixels(png) < 0.5).float().mean().item()
    assert share == pytest.approx((0.9 * scene.things[0].box.size) ** 2, abs=0.02)


def test_a_word_is_dark_on_a_pale_sign() -> None:
    drawn = {word: word_drawing(word) for word in WORDS}
    assert len({image.numpy().tobytes() for image in drawn.values()}) == len(WORDS)
    for image in drawn.values():
        height = int((image[:, SIDE // 2, 3] > 0).sum())
        assert height == round(SIDE * WORD_HEIGHT)
        sign = image[image[..., 3] > 0][:, 0].float()
        assert 0.02 < (sign < 100).float().mean() < 0.4


def test_a_variant_is_at_its_place() -> None:
    """Black and white drawings differ in their boxes alone, but for a pixel of blur and a small shift."""
    white = BLACK.clone()
    white[..., :3] = 255
    black_BCHW, again_BCHW, white_BCHW = (
        picture_of([SCENE] * 20, rgba, 64, Augment(0)) for rgba in (BLACK, BLACK, white)
    )
    assert torch.equal(black_BCHW, again_BCHW) and black_BCHW.min() >= 0 and black_BCHW.max() <= 1
    differs_BHW = ((white_BCHW - black_BCHW).abs() > 0.02).any(dim=1)
    assert differs_BHW[:, 10:22, 10:22].all()
    assert not differs_BHW[:, 42:, :22].any()


def test_one_drawing_without_a_box_fills_its_picture() -> None:
    boxed = plain_pictures([single(Known(DOG, 0))], BLACK, 64, [None])
    torch.testing.assert_close(pixels(boxed[0]), on_white(BLACK[:1], 64)[0], atol=0.003, rtol=0)


def test_every_topic_has_an_own_wording() -> None:
    texts = [template for templates in TEMPLATES.values() for template in templates]
    assert len(set(texts)) == len(texts)
