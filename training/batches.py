"""Training sequences: one picture, and several questions about it that do not see each other.

The prompt's start with its picture is written once; each question with its answer is a *turn* that attends
to that start and to itself, at the positions it would have alone. So every turn is trained exactly as the
served prompt `USER: <image>\\n{question} ASSISTANT:` reads, at a fraction of the work.

Shape legend: that of kernels/routing.py, and B sequences, S positions.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from prismoe.kernels.routing import PADDING, TEXT
from prismoe.training.concepts import Concept
from prismoe.training.model import Tokens
from prismoe.training.questions import SYSTEM, Question, Topic, ask, chat
from prismoe.training.tokenizer import END, IMAGE

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
    """One sequence in the making. A turn's number is positive if it sees the start, negative if it stands
    alone.
    """

    token: list[int]
    position: list[int]
    turn: list[int]
    target: list[int]
    pictured: list[bool]

    def add(
        self, tokens: list[int], targets: list[int], turn: int, first: int, pictured: bool = False
    ) -> None:
        self.token += tokens
        self.target += targets
        self.turn += [turn] * len(tokens)
        self.position += range(first, first + len(tokens))
        self.pictured += [pictured] * len(tokens)


class Composer:
    """Writes batches of questions about given concepts."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, image_tokens: int, topics: Sequence[Topic], seed: int
    ) -> None:
        """`image_tokens` is how many tokens a picture takes."""
        self.tokenizer, self.image_tokens, self.topics = tokenizer, image_tokens, topics
        self.image, self.end = (tokenizer.convert_tokens_to_ids(token) for token in (IMAGE, END))
        self.draw = random.Random(seed)

    def pictures(self, concepts: Sequence[Concept]) -> Batch:
        """Questions about a picture of each concept, whose features replace the image tokens."""
        return self._pad(
            [self._sequence([self.image] * self.image_tokens, concept, True) for concept in concepts]
        )

    def words(self, concepts: Sequence[Concept], slots: int = 16) -> Batch:
        """The same questions with each concept's name, in gaps, in the picture's place."""
        return self._pad(
            [self._sequence(self._spelt(concept, slots), concept, False) for concept in concepts]
        )

    def turn(self, question: Question) -> tuple[list[int], list[int]]:
        """A turn's tokens after the start, and its targets: the answer and the end."""
        asked = self._encode(f"{'USER: ' if question.topic is None else chr(10)}{question.text} ASSISTANT:")
        answered = [*self._encode(f" {question.answer}"), self.end]
        return asked + answered, [IGNORED] * (len(asked) - 1) + answered + [IGNORED]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _spelt(self, concept: Concept, slots: int) -> list[int]:
        """The name again and again, each token dropped at even odds."""
        name = self._encode(f" {concept.name}")
        offset = self.draw.randrange(slots)
        return [
            name[(offset + i) % len(name)] if self.draw.random() < 0.5 else self.end for i in range(slots)
        ]

    def _sequence(self, picture: list[int], concept: Concept, pictured: bool) -> _Sequence:
        system = f"{self.draw.choice(SYSTEM)} " if self.draw.random() < 0.1 else ""
        opening = self._encode(f"{system}USER: ")
        sequence = _Sequence([], [], [], [], [])
        sequence.add(opening, [IGNORED] * len(opening), START, 0)
        sequence.add(picture, [IGNORED] * len(picture), START, len(opening), pictured)
        start = len(opening) + len(picture)
        for number, topic in enumerate(self.draw.sample(self.topics, min(TURNS, len(self.topics))), 1):
            tokens, targets = self.turn(ask(self.draw, topic, concept))
            if self.draw.random() < 0.1:  # a second question in the same conversation
                again = self._follow_up(concept)
                tokens, targets = tokens + again[0], targets + again[1]
            sequence.add(tokens, targets, number, start)
        if self.draw.random() < 0.3:
            sequence.add(*self.turn(chat(self.draw)), -1, 0)
        return sequence

    def _follow_up(self, concept: Concept) -> tuple[list[int], list[int]]:
        question = ask(self.draw, self.draw.choice(self.topics), concept)
        return self.turn(Question(None, question.text, question.answer))

    def _pad(self, sequences: list[_Sequence]) -> Batch:
        length = max(len(sequence.token) for sequence in sequences)

        def stack(rows: list[list[int]], filler: int) -> Tensor:
            return torch.tensor([row + [filler] * (length - len(row)) for row in rows])

        turn_BS = stack([s.turn for s in sequences], PADDED)
        pictures = enumerate(sequences)
        segment_BS = stack([[i if seen else TEXT for seen in s.pictured] for i, s in pictures], PADDING)
        query_BS1, key_B1S = turn_BS[:, :, None], turn_BS[:, None, :]
        sees_BSS = (query_BS1 == key_B1S) | ((key_B1S == START) & (query_BS1 > START))
        tokens = Tokens(
            token_BS=stack([s.token for s in sequences], self.end),
            position_BS=stack([s.position for s in sequences], 0),
            segment_BS=segment_BS,
            mask_BSS=sees_BSS & torch.ones(length, length).tril().bool(),
        )
        return Batch(tokens, stack([s.target for s in sequences], IGNORED))
