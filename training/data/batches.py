"""Training sequences: one picture, and several questions about it that do not see each other.

The prompt's start with its picture is written once; each question with its answer is a *turn* that attends
to that start and to itself, at the positions it would have alone. So every turn is trained exactly as the
served prompt `USER: <image>\\n{question} ASSISTANT:` reads, at a fraction of the work.

A router that decides once a request needs each turn in a sequence of its own: `Composer.requests` writes
these, with the same pictures and questions.

Shape legend: that of kernels/routing.py, and B sequences, S positions.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from prismoe.kernels.routing import PADDING, TEXT
from prismoe.training.data.questions import SYSTEM, TASKS, Question, Topic, chat
from prismoe.training.data.scene_questions import ask_of, askable
from prismoe.training.data.scenes import Scene, spelt
from prismoe.training.data.tokenizer import END, IMAGE
from prismoe.training.model.moe_llava import Prompts, Tokens

IGNORED = -100  # no loss here
TURNS = 3  # questions about each picture
START, PADDED = 0, -1_000  # the turn numbers of a prompt's start and of padding


@dataclass(frozen=True)
class Batch:
    """Token sequences and, where an answer is to be given, the next token."""

    tokens: Tokens
    target_BS: Tensor


@dataclass
class _Sequence:
    """One sequence in the making. A turn's number is positive if it sees the start, negative if it is
    alone; `topics` is what each turn first asks for.
    """

    token: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    segment: list[int] = field(default_factory=list)
    topics: dict[int, Topic | None] = field(default_factory=dict)

    def add(self, tokens: list[int], targets: list[int], turn: int, first: int, segment: int = TEXT) -> None:
        self.token += tokens
        self.target += targets
        self.turn += [turn] * len(tokens)
        self.position += range(first, first + len(tokens))
        self.segment += [segment] * len(tokens)

    def alone(self, turn: int) -> "_Sequence":
        """One turn with all that it sees."""
        own = [i for i, of in enumerate(self.turn) if of == turn or (of == START and turn > START)]
        columns = (self.token, self.position, self.turn, self.target, self.segment)
        token, position, turns, target, segment = ([column[i] for i in own] for column in columns)
        return _Sequence(token, position, turns, target, segment, {turn: self.topics[turn]})


class Composer:
    """Writes batches of questions about given scenes."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, image_tokens: int, topics: Sequence[Topic], seed: int
    ) -> None:
        """`image_tokens` is how many tokens a picture takes."""
        self.tokenizer, self.image_tokens, self.topics = tokenizer, image_tokens, topics
        self.image, self.end = (tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, END))
        self.draw = random.Random(seed)

    def pictures(self, scenes: Sequence[Scene]) -> Batch:
        """Questions about a picture of each scene, whose features replace the image tokens."""
        return self._pad(self._pictured(scenes))

    def requests(self, scenes: Sequence[Scene]) -> Batch:
        """What `pictures` would ask, each turn as a request of its own.

        A second question in the same conversation goes by the first one's label and prompt.
        """
        alone = [s.alone(turn) for s in self._pictured(scenes) for turn in s.topics]
        batch = self._pad(alone)
        is_answer_BS = batch.target_BS != IGNORED
        before_answer_BS = is_answer_BS.cumsum(dim=1) - is_answer_BS.long() == 0
        prompts = Prompts(
            torch.tensor([TASKS[topic] for s in alone for topic in s.topics.values()]),
            before_answer_BS & (batch.tokens.segment_BS == TEXT),
        )
        return replace(batch, tokens=replace(batch.tokens, prompts=prompts))

    def words(self, scenes: Sequence[Scene]) -> Batch:
        """The same questions with the scenes' names and words, in gaps, in the picture's place."""
        return self._pad([self._sequence(self._spelt(scene), scene, TEXT) for scene in scenes])

    def turn(self, question: Question) -> tuple[list[int], list[int]]:
        """A turn's tokens after the start, and its targets: the answer and the end."""
        asked = self._encode(f"{'USER: ' if question.topic is None else chr(10)}{question.text} ASSISTANT:")
        answered = [*self._encode(f" {question.answer}"), self.end]
        return asked + answered, [IGNORED] * (len(asked) - 1) + answered + [IGNORED]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _spelt(self, scene: Scene) -> list[int]:
        """For each patch of the picture a token of the name or word that is there, or, at even odds, none."""
        tokens = []
        for number, name in enumerate(spelt(scene, math.isqrt(self.image_tokens))):
            own = self._encode(f" {name}") if name and self.draw.random() < 0.5 else [self.end]
            tokens.append(own[number % len(own)])
        return tokens

    def _pictured(self, scenes: Sequence[Scene]) -> list[_Sequence]:
        picture = [self.image] * self.image_tokens
        return [self._sequence(picture, scene, segment) for segment, scene in enumerate(scenes)]

    def _sequence(self, picture: list[int], scene: Scene, segment: int) -> _Sequence:
        system = f"{self.draw.choice(SYSTEM)} " if self.draw.random() < 0.1 else ""
        opening = self._encode(f"{system}USER: ")
        sequence = _Sequence()
        sequence.add(opening, [IGNORED] * len(opening), START, 0)
        sequence.add(picture, [IGNORED] * len(picture), START, len(opening), segment)
        start = len(opening) + len(picture)
        topics = [topic for topic in askable(scene) if topic in self.topics]
        for number, topic in enumerate(self.draw.sample(topics, min(TURNS, len(topics))), 1):
            sequence.topics[number] = topic
            tokens, targets = self.turn(ask_of(self.draw, topic, scene))
            if self.draw.random() < 0.1:  # a second question in the same conversation
                again = self._follow_up(self.draw.choice(topics), scene)
                tokens, targets = tokens + again[0], targets + again[1]
            sequence.add(tokens, targets, number, start)
        if self.draw.random() < 0.3:
            sequence.topics[-1] = None
            sequence.add(*self.turn(chat(self.draw)), -1, 0)
        return sequence

    def _follow_up(self, topic: Topic, scene: Scene) -> tuple[list[int], list[int]]:
        question = ask_of(self.draw, topic, scene)
        return self.turn(Question(None, question.text, question.answer))

    def _pad(self, sequences: list[_Sequence]) -> Batch:
        length = max(len(sequence.token) for sequence in sequences)

        def stack(rows: list[list[int]], filler: int) -> Tensor:
            return torch.tensor([row + [filler] * (length - len(row)) for row in rows])

        turn_BS = stack([s.turn for s in sequences], PADDED)
        query_BS1, key_B1S = turn_BS[:, :, None], turn_BS[:, None, :]
        sees_BSS = (query_BS1 == key_B1S) | ((key_B1S == START) & (query_BS1 > START))
        tokens = Tokens(
            token_BS=stack([s.token for s in sequences], self.end),
            position_BS=stack([s.position for s in sequences], 0),
            segment_BS=stack([s.segment for s in sequences], PADDING),
            mask_BSS=sees_BSS & torch.ones(length, length).tril().bool(),
        )
        return Batch(tokens, stack([s.target for s in sequences], IGNORED))
