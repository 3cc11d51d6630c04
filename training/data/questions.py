"""What is asked of a picture of one drawing, with the answers; what is asked without one; all wordings."""

import json
import random
from dataclasses import dataclass
from typing import Literal, get_args

from prismoe.model_plugins.routing.request_policy import NO_TASK
from prismoe.training.data.concepts import CONCEPTS, Concept
from prismoe.training.data.scenes import PLACES, WORDS

DrawingTopic = Literal["name", "category", "kind", "yes/no"]
"""Of a picture of one drawing."""
SceneTopic = Literal[
    "count",
    "count of a thing",
    "thing at a place",
    "category at a place",
    "place of a thing",
    "presence",
    "word",
]
"""Of a picture of any number of drawings."""
Topic = DrawingTopic | SceneTopic
DRAWING_TOPICS: tuple[DrawingTopic, ...] = get_args(DrawingTopic)
SCENE_TOPICS: tuple[SceneTopic, ...] = get_args(SceneTopic)

TEMPLATES: dict[Topic, tuple[str, ...]] = {
    "name": (
        "What is this?",
        "What is it?",
        "What's this?",
        "What is in the picture?",
        "What is in this picture?",
        "What is in the image?",
        "What is in this image?",
        "What do you see?",
        "What does the picture show?",
        "What is shown in the image?",
        "What object is this?",
        "Name this.",
        "Name the thing in the picture.",
        "Describe the picture.",
        "Describe this image.",
    ),
    "category": (
        "Which category does it belong to?",
        "What category does it belong to?",
        "Which category is this?",
        "What category is it?",
        "What is its category?",
        "Which category does the thing in the picture belong to?",
    ),
    "kind": (
        "What kind of {category} is it?",
        "What kind of {category} is this?",
        "Which kind of {category} is it?",
        "What kind of {category} is in the picture?",
        "What kind of {category} does the picture show?",
    ),
    "yes/no": (
        "Is it {thing}?",
        "Is this {thing}?",
        "Is there {thing} in the picture?",
        "Does the picture show {thing}?",
    ),
    "count": (
        "How many things are there?",
        "How many things are in the picture?",
        "How many things does the picture show?",
        "How many things do you see?",
        "Count the things.",
    ),
    "count of a thing": (
        "How often does the picture show {thing}?",
        "How many times does the picture show {thing}?",
        "How many times do you see {thing}?",
        "How often do you see {thing}?",
    ),
    "thing at a place": (
        "What is at the {place}?",
        "What do you see at the {place}?",
        "What thing is at the {place}?",
        "Name the thing at the {place}.",
    ),
    "category at a place": (
        "Which category does the thing at the {place} belong to?",
        "What category is at the {place}?",
        "What is the category of the thing at the {place}?",
    ),
    "place of a thing": (
        "Where {verb} the {name}?",
        "Where in the picture {verb} the {name}?",
        "Where do you see the {name}?",
        "At which place {verb} the {name}?",
    ),
    "presence": (
        "Do you see {thing}?",
        "Can you see {thing}?",
        "Can you find {thing}?",
        "Do you find {thing} in the picture?",
    ),
    "word": (
        "What word is written?",
        "Which word is written?",
        "What word is in the picture?",
        "What is written in the picture?",
        "What does it say?",
        "Read the word.",
    ),
}
NUMBERS = ("zero", "one", "two", "three", "four")
NO_WORD = "none"
PLAIN: dict[Topic, str] = {topic: templates[0] for topic, templates in TEMPLATES.items()}
"""The wordings of the exams."""
TASKS: dict[Topic | None, int] = {None: NO_TASK} | {topic: task for task, topic in enumerate(TEMPLATES)}
"""The label of a question on each topic, for the router `task`; one without a picture has none."""
SYSTEM = (
    "You are a helpful assistant.",
    "Answer in a word or two.",
    "Look at the picture and answer the question.",
)

_PLURAL = {
    "cherries",
    "grapes",
    "french fries",
    "pancakes",
    "jeans",
    "skis",
    "glasses",
    "scissors",
    "headphones",
}
_MASS = {
    "corn",
    "spaghetti",
    "popcorn",
    "bacon",
    "chocolate",
    "candy",
    "bread",
    "cheese",
    "sushi",
    "golf",
    "bowling",
}
_MASS |= {"coffee", "tea", "beer", "wine", "champagne", "rain", "lightning"}


@dataclass(frozen=True)
class Question:
    """A question with its answer. `topic` is None where there is no picture."""

    topic: Topic | None
    text: str
    answer: str


def with_article(name: str) -> str:
    """`a dog`, `an apple`; `cherries` and `popcorn` stand alone."""
    if name in _PLURAL | _MASS:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def is_or_are(name: str) -> str:
    """The verb of `the dog is` and `the cherries are`."""
    return "are" if name in _PLURAL else "is"


def answer(topic: Topic, concept: Concept) -> str:
    """The answer about a picture of `concept` on every topic but yes/no."""
    return {"name": concept.name, "category": concept.category, "kind": concept.kind}[topic]


def fill(template: str, concept: Concept, thing: Concept | None = None) -> str:
    """The template's text about a picture of `concept`; `thing` is what a yes/no question asks for."""
    return template.format(category=concept.category, thing=with_article((thing or concept).name))


def ask(draw: random.Random, topic: Topic, concept: Concept) -> Question:
    """A question about a picture of `concept`, in one of the topic's phrasings, as a person might type it."""
    template = draw.choice(TEMPLATES[topic])
    if topic == "yes/no":
        thing = concept if draw.random() < 0.5 else other_thing(draw, concept)
        question = Question(topic, fill(template, concept, thing), "yes" if thing == concept else "no")
    else:
        question = Question(topic, fill(template, concept), answer(topic, concept))
    return Question(topic, typed(draw, question.text), question.answer)


def other_thing(draw: random.Random, concept: Concept) -> Concept:
    """What a picture of `concept` does not show: half of the time something of its category."""
    same_category = draw.random() < 0.5
    others = [c for c in CONCEPTS if c != concept and (not same_category or c.category == concept.category)]
    return draw.choice(others)


def exam_questions(draw: random.Random, concept: Concept) -> list[tuple[Topic, str, str]]:
    """What is asked plainly about a picture of `concept`, with the answer: a question on each topic, and "is
    it" of something else, too.
    """
    asked: list[tuple[Topic, str, str]] = []
    for topic in DRAWING_TOPICS:
        if topic == "yes/no":
            for thing, reply in ((concept, "yes"), (other_thing(draw, concept), "no")):
                asked.append((topic, fill(PLAIN[topic], concept, thing), reply))
        else:
            asked.append((topic, fill(PLAIN[topic], concept), answer(topic, concept)))
    return asked


def question_line(image: str, question: str, answer: str) -> str:
    """A line of a file that `prismoe evaluate --questions` takes; `image` is relative to the file."""
    return json.dumps({"image": image, "question": question, "answer": answer}) + "\n"


def chat(draw: random.Random) -> Question:
    """A question without a picture."""
    if draw.random() < 0.4:
        texts, reply = draw.choice(_SMALL_TALK)
        return Question(None, typed(draw, draw.choice(texts)), reply)
    concept = draw.choice(CONCEPTS)
    text = draw.choice(("What is {thing}?", "What kind of thing is {thing}?", "Tell me about {thing}."))
    return Question(None, typed(draw, fill(text, concept)), fact(concept))


def fact(concept: Concept) -> str:
    """What the model says of a concept that it is asked about in words."""
    return f"{concept.category}, {concept.kind}" if concept.kind != concept.category else concept.category


_SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "Good morning."), "Hello! Show me a picture."),
    (
        ("Who are you?", "What are you?", "What is your name?"),
        "I am prismoji. I name the thing in a picture.",
    ),
    (("What can you do?", "Help", "How can you help me?"), "I name the thing in a picture."),
    (("Thank you.", "Thanks", "Thanks!"), "You are welcome."),
    (("Bye", "Goodbye."), "Goodbye."),
)


def typed(draw: random.Random, text: str) -> str:
    """Now and then in lower case, or without the final mark."""
    if draw.random() < 0.15:
        text = text.lower()
    return text.rstrip("?.!") if draw.random() < 0.1 else text


def corpus() -> list[str]:
    """Every text that the tokenizer should write in few tokens, the names and answers many times."""
    sample = random.Random(0)
    texts = [system for system in SYSTEM for _ in range(20)]
    for concept in CONCEPTS:
        for _ in range(4):
            texts += [
                f"{question.text} ASSISTANT: {question.answer}"
                for question in (ask(sample, topic, concept) for topic in DRAWING_TOPICS)
            ]
            texts += [f" {concept.name} {concept.category} {concept.kind}"]
    texts += _scene_texts(sample)
    texts += [f"{q.text} ASSISTANT: {q.answer}" for q in (chat(sample) for _ in range(1000))]
    return [f"USER: \n{text}" for text in texts]


def _scene_texts(sample: random.Random) -> list[str]:
    """Wordings and answers of the questions about scenes."""
    places = list(dict.fromkeys(place for layout in PLACES.values() for place in layout))
    answers = [*NUMBERS, NO_WORD, *WORDS, *places]
    texts = [f" {reply} ASSISTANT: {reply}" for reply in answers for _ in range(20)]
    for topic in SCENE_TOPICS:
        for template in TEMPLATES[topic]:
            for concept in sample.sample(CONCEPTS, 20):
                name = concept.name
                texts.append(
                    template.format(
                        thing=with_article(name), name=name, verb=is_or_are(name), place=sample.choice(places)
                    )
                )
    return texts
