"""Questions about a scene of several drawings, with the answers.

They are true of a scene of one drawing, too, where the topic can be asked of it.
"""

import random
from collections.abc import Sequence

from prismoe.training.data.concepts import CONCEPTS, Concept
from prismoe.training.data.questions import (
    DRAWING_TOPICS,
    NO_WORD,
    NUMBERS,
    PLAIN,
    SCENE_TOPICS,
    TEMPLATES,
    Question,
    Topic,
    ask,
    is_or_are,
    typed,
    with_article,
)
from prismoe.training.data.scenes import Scene, Thing


def askable(scene: Scene) -> list[Topic]:
    """The topics that can be asked of a scene."""
    topics: list[Topic] = list(DRAWING_TOPICS) if len(scene.things) == 1 else []
    is_laid_out = scene.things[0].place is not None
    for topic in SCENE_TOPICS:
        needs_place = topic in ("thing at a place", "category at a place", "place of a thing")
        if not needs_place or (is_laid_out and (topic != "place of a thing" or _once(scene))):
            topics.append(topic)
    return topics


def ask_of(draw: random.Random, topic: Topic, scene: Scene) -> Question:
    """A question about a scene, in one of the topic's wordings, as a person might type it."""
    if topic in DRAWING_TOPICS:
        return ask(draw, topic, scene.things[0].concept)
    question = _asked(draw, topic, scene, draw.choice(TEMPLATES[topic]), draw.random() < 0.5)
    return Question(topic, typed(draw, question.text), question.answer)


def ask_plainly(draw: random.Random, topic: Topic, scene: Scene, is_shown: bool) -> Question:
    """A question of one of SCENE_TOPICS in the topic's first wording; `is_shown` whether it is about a thing
    that the scene shows, where the topic allows another one.
    """
    return _asked(draw, topic, scene, PLAIN[topic], is_shown)


def _asked(draw: random.Random, topic: Topic, scene: Scene, template: str, is_shown: bool) -> Question:
    thing = draw.choice(_once(scene) if topic == "place of a thing" else scene.things)
    concept = thing.concept if is_shown else not_shown(draw, scene)
    match topic:
        case "count":
            answer = NUMBERS[len(scene.things)]
        case "count of a thing":
            answer = NUMBERS[scene.concepts.count(concept)]
        case "presence":
            answer = "yes" if is_shown else "no"
        case "word":
            answer = scene.word.text if scene.word else NO_WORD
        case "thing at a place":
            answer = thing.concept.name
        case "category at a place":
            answer = thing.concept.category
        case "place of a thing":
            concept = thing.concept
            answer = thing.place or ""
        case _:
            raise ValueError(f"{topic} is asked of a single drawing.")
    text = template.format(
        thing=with_article(concept.name), name=concept.name, verb=is_or_are(concept.name), place=thing.place
    )
    return Question(topic, text, answer)


def _once(scene: Scene) -> Sequence[Thing]:
    """The things that the scene shows once."""
    return [thing for thing in scene.things if scene.concepts.count(thing.concept) == 1]


def not_shown(draw: random.Random, scene: Scene) -> Concept:
    """What the scene does not show: half of the time something of a category that it shows."""
    category = draw.choice(scene.concepts).category if draw.random() < 0.5 else None
    others = [c for c in CONCEPTS if c not in scene.concepts and category in (None, c.category)]
    return draw.choice(others)
